"""What is to be stored for a phase: the images of a split, in one view, under a name that says all they depend on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from launcher.training.feature_cache.build import Views
from launcher.training.feature_cache.shards import Shards


@dataclasses.dataclass(frozen=True)
class Part:
    """The images of a split in one view, whose rows are wanted."""

    title: str
    images: Views
    count: int
    view: int | None
    """Of training images: the first part of their keys; None where the index is the key."""
    name: str

    def key_of(self, index: int) -> Any:
        return index if self.view is None else (self.view, index)


def shards_of(part: Part, folder: Path, row_bytes: int) -> Shards:
    return Shards(folder / "features" / part.name, part.count, row_bytes)
