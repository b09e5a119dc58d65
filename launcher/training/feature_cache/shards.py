"""Rows on disk: files of some megabytes, each whole or absent, and each with a hash of its own."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from launcher.files import draft_file

BLOCK = 32
"""Number of images that go through the prefix together.

It is fixed, because the number of images in a batch changes the rounding of the outputs.
"""
LARGEST_SHARD_BYTES = 64 << 20
_DIGEST_BYTES = 16


def blocks_in(count: int) -> int:
    """Return how many blocks `count` images make."""
    return -(-count // BLOCK)


class Shards:
    """Rows of `num_samples` images in a folder.

    Several runs and processes may read and write the folder at once: a shard appears by renaming, and holds the hash of
    its rows in its last 16 bytes.
    """

    def __init__(self, folder: Path, num_samples: int, row_bytes: int) -> None:
        self.folder = folder
        self.num_samples = num_samples
        self.row_bytes = row_bytes
        # At least 33 shards from 1,025 images on, so that processes can share the work. The layout does not depend on
        # the number of processes.
        blocks = max(1, min(LARGEST_SHARD_BYTES // (row_bytes * BLOCK), -(-num_samples // (64 * BLOCK))))
        self.samples_per_shard = blocks * BLOCK
        self._open: dict[int, np.memmap[tuple[int, int], np.dtype[np.uint8]]] = {}

    def __len__(self) -> int:
        return -(-self.num_samples // self.samples_per_shard)

    def samples(self, shard: int) -> range:
        """Return the range of samples in a shard."""
        begin = shard * self.samples_per_shard
        return range(begin, min(begin + self.samples_per_shard, self.num_samples))

    def path(self, shard: int) -> Path:
        """Return the path of a shard's file."""
        return self.folder / f"{shard:06d}.rows"

    def missing(self) -> list[int]:
        """Return the shards that are absent, or not as long as they should be."""
        return [shard for shard in range(len(self)) if self._size(shard) != self._whole_size(shard)]

    def is_sound(self, shard: int) -> bool:
        """Return whether a shard's rows are those that were written."""
        path, size = self.path(shard), self._whole_size(shard)
        try:
            with path.open("rb") as file:
                digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
                left = size - _DIGEST_BYTES
                while left:
                    piece = file.read(min(left, 1 << 22))
                    if not piece:
                        return False
                    digest.update(piece)
                    left -= len(piece)
                return file.read() == digest.digest()
        except OSError:
            return False

    def write(self, shard: int, blocks: Iterable[torch.Tensor]) -> None:
        """Put a shard in its place.

        Raises:
            OSError: The disk refuses; the shard is not there then.
        """
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        with draft_file(self.path(shard)) as file:
            for rows in blocks:
                data = rows.numpy().data
                digest.update(data)
                file.write(data)
            file.write(digest.digest())

    def discard(self, shard: int) -> None:
        """Delete a shard, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.path(shard).unlink()

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows of the images `indices` (n,), in their order, as uint8 (n, row_bytes)."""
        rows = np.empty((len(indices), self.row_bytes), dtype=np.uint8)
        shards, places = np.divmod(indices.numpy(), self.samples_per_shard)
        for shard in np.unique(shards):
            here = shards == shard
            rows[here] = self._mapped(int(shard))[places[here]]
        return torch.from_numpy(rows)

    def _mapped(self, shard: int) -> np.memmap[tuple[int, int], np.dtype[np.uint8]]:
        if shard not in self._open:
            shape = (len(self.samples(shard)), self.row_bytes)
            self._open[shard] = np.memmap(self.path(shard), dtype=np.uint8, mode="r", shape=shape)
        return self._open[shard]

    def _size(self, shard: int) -> int | None:
        try:
            return self.path(shard).stat().st_size
        except OSError:
            return None

    def _whole_size(self, shard: int) -> int:
        return len(self.samples(shard)) * self.row_bytes + _DIGEST_BYTES


class InMemory:
    """Rows of `num_samples` images in the memory of this process."""

    def __init__(self, num_samples: int, row_bytes: int) -> None:
        self.num_samples = num_samples
        self._rows = torch.empty(num_samples, row_bytes, dtype=torch.uint8)

    def put(self, begin: int, rows: torch.Tensor) -> None:
        """Set the rows of the images from `begin` on."""
        self._rows[begin : begin + len(rows)] = rows

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows of the images `indices` (n,), in their order, as uint8 (n, row_bytes)."""
        return self._rows[indices]
