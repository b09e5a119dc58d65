"""Rows on disk: files of some megabytes, each whole or not there, each with a hash of its own."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from launcher.files import draft_file

BLOCK = 32
"""Images that go through the prefix together. Fixed: how many are together changes the rounding of what comes out."""
LARGEST_SHARD_BYTES = 64 << 20
_DIGEST_BYTES = 16


def blocks_in(count: int) -> int:
    """How many blocks so many images make."""
    return -(-count // BLOCK)


class Shards:
    """The rows of `num_samples` images in a folder. Several runs and processes may read and write it at once: a shard
    appears by renaming, and holds the hash of its rows in its last 16 bytes."""

    def __init__(self, folder: Path, num_samples: int, row_bytes: int) -> None:
        self.folder = folder
        self.num_samples = num_samples
        self.row_bytes = row_bytes
        # At least 64 shards where there are images enough, so that processes can share the work; whatever their number.
        blocks = max(1, min(LARGEST_SHARD_BYTES // (row_bytes * BLOCK), -(-num_samples // (64 * BLOCK))))
        self.samples_per_shard = blocks * BLOCK
        self._open: dict[int, np.memmap[tuple[int, int], np.dtype[np.uint8]]] = {}

    def __len__(self) -> int:
        return -(-self.num_samples // self.samples_per_shard)

    def samples(self, shard: int) -> range:
        begin = shard * self.samples_per_shard
        return range(begin, min(begin + self.samples_per_shard, self.num_samples))

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:06d}.rows"

    def missing(self) -> list[int]:
        """Shards that are not there, or not as long as they should be."""
        return [shard for shard in range(len(self)) if self._size(shard) != self._whole_size(shard)]

    def is_sound(self, shard: int) -> bool:
        """Whether a shard's rows are those that were written."""
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
        """Put a shard in its place. Raises OSError; nothing is there then."""
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        with draft_file(self.path(shard)) as file:
            for rows in blocks:
                data = rows.numpy().data
                digest.update(data)
                file.write(data)
            file.write(digest.digest())

    def discard(self, shard: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path(shard).unlink()

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """uint8 (n, row_bytes) of the images `indices` (n,), in their order."""
        found = np.empty((len(indices), self.row_bytes), dtype=np.uint8)
        shards, places = np.divmod(indices.numpy(), self.samples_per_shard)
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = self._mapped(int(shard))[places[here]]
        return torch.from_numpy(found)

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
    """The rows of `num_samples` images in this process's memory."""

    def __init__(self, num_samples: int, row_bytes: int) -> None:
        self.num_samples = num_samples
        self._rows = torch.empty(num_samples, row_bytes, dtype=torch.uint8)

    def put(self, begin: int, rows: torch.Tensor) -> None:
        self._rows[begin : begin + len(rows)] = rows

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """uint8 (n, row_bytes) of the images `indices` (n,), in their order."""
        return self._rows[indices]
