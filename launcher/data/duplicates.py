"""Duplicate images: in both training and validation, or with different targets; compared by content, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from launcher.data.digests import content_digest
from launcher.recipe.protocols import Split, Splits
from launcher.text import one_line, plural


def digest(content: bytes | None, image: Image.Image | None = None) -> bytes | None:
    """Return a digest of an image file's content, or of the pixels if there is none, or None if both are missing."""
    if content is None:
        if image is None:
            return None
        content = repr((image.mode, image.size)).encode() + np.asarray(image).tobytes()
    return content_digest(content)


def repeat_notes(splits: Splits, train: Sequence[bytes | None], val: Sequence[bytes | None]) -> list[str]:
    """Return a line on images that are in both splits, and a line on images with different targets.

    `train` and `val` are the digests of the splits' images, with None for images that were not examined.
    """
    notes = []
    first = {key: index for index, key in reversed([*enumerate(train)])}
    in_both = [(index, first[key]) for index, key in enumerate(val) if key is not None and key in first]
    if in_both:
        notes.append(
            f"{len(in_both):,} of {plural(len(val), 'validation image')} "
            f"{'is a training image' if len(in_both) == 1 else 'are training images'}, too (the same file content), so "
            f"the metrics are too good: {_name(splits.val, in_both[0][0])} is {_name(splits.train, in_both[0][1])}"
        )
    seen: dict[bytes, tuple[Split, int]] = {}
    differing: dict[bytes, tuple[Split, int]] = {}
    for split, keys in ((splits.train, train), (splits.val, val)):
        for index, key in enumerate(keys):
            if key is None:
                continue
            other, place = seen.setdefault(key, (split, index))
            if not np.array_equal(other.targets[place], split.targets[index]):
                differing.setdefault(key, (split, index))
    if differing:
        key, last = next(iter(differing.items()))
        one, another = (f"{_name(*place)}{_class(splits, *place)}" for place in (seen[key], last))
        what = "classes" if splits.train.targets.ndim == 1 else "targets"
        notes.append(
            f"{plural(len(differing), 'image has', 'images have')} two {what} (the same file content): "
            f"{one} and {another}"
        )
    return notes


def _name(split: Split, index: int) -> str:
    return one_line(split.images.name(index))


def _class(splits: Splits, split: Split, index: int) -> str:
    return f" ({splits.names[int(split.targets[index])]!r})" if split.targets.ndim == 1 else ""
