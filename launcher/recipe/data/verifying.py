"""Every image is decoded once before training: a broken one must not end a run after hours, nor be left out unseen.

The main process finds (`find_broken`) and tells the others what; all of them do the same with it (`verified`):

    broken = find_broken(splits, workers=8) if is_main_process else None
    broken = broadcast_object_list([broken])[0]
    splits = verified(splits, broken, on_bad_image_of(recipe.data))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from launcher.errors import UserError
from launcher.recipe.data.decoding import BrokenImageError, to_rgb
from launcher.recipe.data.sources import Subset
from launcher.recipe.data.targets import listed, one_line
from launcher.recipe.protocols import Data, ImageSource, Split, Splits


@dataclasses.dataclass(frozen=True)
class Broken:
    """Indices of the images that cannot be decoded, and why. Picklable."""

    train: tuple[tuple[int, str], ...] = ()
    val: tuple[tuple[int, str], ...] = ()


def on_bad_image_of(data: Data) -> Literal["stop", "skip"]:
    """What a data part wants done; a part that does not say so stops."""
    return "skip" if getattr(data, "on_bad_image", "stop") == "skip" else "stop"


def broken_images(
    images: ImageSource, workers: int = 4, progress: Callable[[int], None] | None = None
) -> list[tuple[int, str]]:
    """Decode every image in `workers` threads (Pillow decodes outside the interpreter lock): index, why of the broken.

    `progress` is called with the number of images done, from this thread, as they are done, in order.
    """

    def reason(index: int) -> str | None:
        try:
            to_rgb(images.read(index))
        except MemoryError:
            raise
        except Exception as error:  # a user's own source may raise anything
            text = error.reason if isinstance(error, BrokenImageError) else str(error)
            return " ".join(text.split()) or type(error).__name__
        return None

    found = []
    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        # In pieces: `map` takes all of its input at once, and a million futures are gigabytes.
        for start in range(0, len(images), 4096):
            for index, why in enumerate(pool.map(reason, range(start, min(start + 4096, len(images)))), start):
                if why is not None:
                    found.append((index, why))
                if progress:
                    progress(index + 1)
    return found


def find_broken(splits: Splits, workers: int = 4, progress: Callable[[int], None] | None = None) -> Broken:
    """The broken images of both splits; `progress` counts over both."""
    train = broken_images(splits.train.images, workers, progress)
    done = len(splits.train)
    val = broken_images(splits.val.images, workers, (lambda count: progress(done + count)) if progress else None)
    return Broken(tuple(train), tuple(val))


def verified(splits: Splits, broken: Broken, on_bad_image: Literal["stop", "skip"]) -> Splits:
    """Splits without the broken images, which `skipped` then lists.

    Raises UserError with "stop" for any broken image, and with "skip" where a split or a class of the training images
    would be left empty.
    """
    lines = [
        f"{one_line(split.images.name(index))} ({reason})"
        for split, found in ((splits.train, broken.train), (splits.val, broken.val))
        for index, reason in found
    ]
    if not lines:
        return splits
    total = len(splits.train) + len(splits.val)
    if on_bad_image == "stop":
        raise UserError(
            f"data: {len(lines)} of {total} images cannot be read: {listed(lines, most=5)}; "
            "repair or remove them, or leave them out with data.on_bad_image=skip"
        )
    train, val = _without(splits.train, broken.train), _without(splits.val, broken.val)
    for name, split in (("training", train), ("validation", val)):
        if not len(split):
            raise UserError(f"data: no {name} image can be read: {listed(lines, most=5)}")
    if train.targets.ndim == 1:
        before, after = set(splits.train.targets.tolist()), set(train.targets.tolist())
        lost = [repr(splits.names[index]) for index in sorted(before - after)]
        if lost:
            raise UserError(
                f"data: no training image of {listed(lost)} can be read: {listed(lines, most=5)}; "
                "repair or remove the class"
            )
    return Splits(train, val, splits.names, (*splits.skipped, *lines))


def whole(
    field: str, split: Split, broken: list[tuple[int, str]], on_bad_image: Literal["stop", "skip"]
) -> tuple[Split, list[str]]:
    """A split of its own without the broken images, and a line for each of them. Raises UserError with "stop" for any,
    and where none is left."""
    lines = [f"{one_line(split.images.name(index))} ({reason})" for index, reason in broken]
    if lines and (on_bad_image == "stop" or len(lines) == len(split)):
        raise UserError(
            f"{field}: {len(lines)} of {len(split)} images cannot be read: {listed(lines, most=5)}; "
            "repair or remove them"
        )
    return _without(split, tuple(broken)), lines


def _without(split: Split, found: tuple[tuple[int, str], ...]) -> Split:
    if not found:
        return split
    keep = np.ones(len(split), dtype=bool)
    keep[[index for index, _ in found]] = False
    indices = np.flatnonzero(keep)
    return Split(Subset(split.images, indices), split.targets[indices])
