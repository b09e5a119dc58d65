"""Features to store for a phase: a split's images in one view, under a name that covers all that they depend on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from launcher.training.feature_cache.build import Views
from launcher.training.feature_cache.shards import Shards


@dataclasses.dataclass(frozen=True)
class Part:
    """Images of a split in one view, whose rows are wanted."""

    title: str
    images: Views
    count: int
    view: int | None
    """View of training images, which comes first in their keys; None if the index is the key."""
    name: str

    def key_of(self, index: int) -> Any:
        """Return the key of an image."""
        return index if self.view is None else (self.view, index)


def shards_of(part: Part, folder: Path, row_bytes: int) -> Shards:
    """Return the shards of `part` below `folder`."""
    return Shards(folder / "features" / part.name, part.count, row_bytes)
