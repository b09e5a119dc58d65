"""Where the outputs of a frozen prefix are kept: on disk, in memory, or nowhere. A question of time only."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeAlias

Store: TypeAlias = Literal["disk", "memory", "none"]

SHARE_OF_MEMORY = 0.5
SHARE_OF_DISK = 0.5
"""Of what is free, what features may take."""
WORTH_KEEPING_SECONDS = 5.0
"""Features that took less to compute are kept in memory for this run, and not on disk for the next."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What was measured before the choice."""

    passes: float
    """How often each image is asked for: epochs, per view."""
    images: int
    """All rows to be kept: images x views, training and validation."""
    row_bytes: int
    seconds_per_image: float
    """To read, decode and take an image through the prefix, on one process."""
    read_bytes_per_second: float
    """From the disk, measured by writing to it."""
    free_disk_bytes: int
    free_memory_bytes: int
    """For one process."""

    @property
    def bytes(self) -> int:
        return self.images * self.row_bytes

    @property
    def times_faster(self) -> float:
        """An epoch from rows on disk, against one through the prefix."""
        return self.seconds_per_image / self.seconds_to_read

    @property
    def seconds_to_read(self) -> float:
        return self.row_bytes / self.read_bytes_per_second

    @property
    def seconds_to_compute(self) -> float:
        return self.images * self.seconds_per_image


def choose(estimate: Estimate, num_processes: int, has_disk: bool) -> tuple[Store, str]:
    """The choice of cache="auto", and why in a few words."""
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
