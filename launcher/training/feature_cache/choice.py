"""Choice of where the outputs of a frozen prefix are kept: on disk, in memory, or nowhere. It affects time only."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

Store: TypeAlias = Literal["disk", "memory", "none"]

SHARE_OF_MEMORY = 0.5
SHARE_OF_DISK = 0.5
"""Largest shares of the free memory and of the free disk space that features may take."""
WORTH_KEEPING_SECONDS = 5.0
"""Time to compute, in seconds, below which features are kept in memory for this run, and not on disk for the next."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Measurements on which the choice is based."""

    passes: float
    """Number of times each image is asked for: epochs, per view."""
    images: int
    """Number of rows to keep: images x views, of training and validation together."""
    row_bytes: int
    seconds_per_image: float
    """Time to read and decode an image and take it through the prefix, on one process."""
    read_bytes_per_second: float
    """Read rate of the disk, estimated by writing to it."""
    free_disk_bytes: int
    free_memory_bytes: int
    """Free memory for one process."""

    @property
    def bytes(self) -> int:
        """Size of all rows, in bytes."""
        return self.images * self.row_bytes

    @property
    def times_faster(self) -> float:
        """Factor by which an epoch from rows on disk is faster than one through the prefix."""
        return self.seconds_per_image / (self.row_bytes / self.read_bytes_per_second)

    @property
    def seconds_to_compute(self) -> float:
        """Time to compute all rows on one process."""
        return self.images * self.seconds_per_image


def choose(estimate: Estimate, num_processes: int, has_disk: bool) -> tuple[Store, str]:
    """Return the choice of cache="auto", and its reason in a few words."""
    fits_memory = estimate.bytes <= SHARE_OF_MEMORY * estimate.free_memory_bytes
    fits_disk = has_disk and estimate.bytes <= SHARE_OF_DISK * estimate.free_disk_bytes
    worth_keeping = estimate.seconds_to_compute >= WORTH_KEEPING_SECONDS * num_processes
    if estimate.passes <= 1 and not worth_keeping:
        return "none", "each image is asked for once"
    if fits_disk and worth_keeping and estimate.times_faster > 1:
        return "disk", "kept for other runs, too"
    if fits_memory:
        return "memory", "computed in seconds" if fits_disk else "the disk has no room or is slow"
    if not fits_disk:
        return "none", "neither disk nor memory has room"
    if estimate.times_faster > 1:
        return "disk", "more than memory holds"
    return "none", "reading would take longer than computing"
