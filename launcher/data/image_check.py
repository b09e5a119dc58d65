"""Decoding of every image before training, so that a broken one neither ends a run after hours nor is lost silently.

The main process finds the broken images (`find_broken`) and broadcasts them; all processes then treat them alike
(`verified`):

    broken = find_broken(splits, workers=8) if is_main_process else None
    broken = broadcast_object_list([broken])[0]
    splits = verified(splits, broken, on_bad_image_of(recipe.data))
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from launcher.data.decoding import Decoder, can_tell_damage, open_image, to_rgb, too_narrow, why_broken
from launcher.data.duplicates import digest, repeat_notes
from launcher.data.sources import Subset
from launcher.errors import UserError
from launcher.recipe.abilities import HandlesBadImages
from launcher.recipe.protocols import Data, ImageSource, Split, Splits
from launcher.text import listed, one_line, plural


@dataclasses.dataclass(frozen=True)
class Broken:
    """Indices of the images that cannot be decoded, each with the reason. Picklable."""

    train: tuple[tuple[int, str], ...] = ()
    val: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()
    """Remarks on images that can be decoded, one line each."""


def on_bad_image_of(data: Data) -> Literal["stop", "skip"]:
    """Return what a data part wants done with broken images: "stop" unless the part says "skip"."""
    return "skip" if isinstance(data, HandlesBadImages) and data.on_bad_image == "skip" else "stop"


@dataclasses.dataclass
class SourceFindings:
    """The findings about a source's images."""

    broken: list[tuple[int, str]]
    """Index and reason of each image that cannot be decoded."""
    digests: list[bytes | None]
    """Digest of each image's content; None for images that cannot be read."""
    remarks: dict[str, list[int]]
    """Indices of images that can be read but are not as they should be, by remark."""


def look_at_all(
    images: ImageSource, workers: int = 4, progress: Callable[[int], None] | None = None, resize_size: int | None = None
) -> SourceFindings:
    """Decode every image, in `workers` threads, as decoders release the interpreter lock.

    With `resize_size`, images that are too narrow to be resized to that shorter side count as broken. `progress` is
    called from this thread with the number of finished images, in order.
    """
    looked, decoder = SourceFindings([], [], {}), Decoder(images)
    with _kept_warnings() as warned, ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:

        def look(index: int) -> tuple[str | None, bytes | None, list[str]]:
            warned().clear()
            try:
                key, remark = _decoded(decoder, index, resize_size)
            except Exception as error:  # a user's own source may raise anything
                return why_broken(error), None, []
            return None, key, [*([remark] if remark else []), *dict.fromkeys(warned())]

        # In pieces, because `map` consumes its whole input at once, and a million futures take gigabytes.
        for start in range(0, len(images), 4096):
            part = range(start, min(start + 4096, len(images)))
            for index, (why, key, remarks) in zip(part, pool.map(look, part), strict=True):
                if why is not None:
                    looked.broken.append((index, why))
                looked.digests.append(key)
                for remark in remarks:
                    looked.remarks.setdefault(remark, []).append(index)
                if progress:
                    progress(index + 1)
    return looked


def _decoded(decoder: Decoder, index: int, resize_size: int | None) -> tuple[bytes | None, str | None]:
    """Return an image's digest, and a remark on it or None.

    Raises whatever its decoder raises, and ValueError for an image that is too narrow.
    """
    images, content = decoder.images, decoder.encoded(index)
    jpeg = decoder.plain_jpeg(index) if content else None
    repaired = None
    if jpeg is not None:
        _check_shape(jpeg.width, jpeg.height, resize_size)
        if can_tell_damage():
            try:
                jpeg.pixels()
                return digest(content), None
            except MemoryError:
                raise
            except Exception:  # Pillow decides, as it may be able to repair the data
                repaired = DAMAGED_JPEG
    image = open_image(content, images.name(index)) if content else images.read(index)
    _check_shape(*image.size, resize_size)
    to_rgb(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        largest = int(np.asarray(image).max(initial=0))
        repaired = FEW_BITS if 0 < largest < 4096 else repaired
    return digest(content or None, image), repaired


DAMAGED_JPEG = "JPEG data that is damaged and was repaired by the decoder"
FEW_BITS = "16-bit pixels of which only 12 bits or fewer are used, so that the image is almost black; scale them up"


def _check_shape(width: int, height: int, resize_size: int | None) -> None:
    if resize_size is not None and (why := too_narrow(width, height, resize_size)):
        raise ValueError(why)


@contextlib.contextmanager
def _kept_warnings() -> Iterator[Callable[[], list[str]]]:
    """Collect Pillow's warnings for each thread, so that the image is known; let other warnings pass.

    The value yielded is a function that returns the warnings of the calling thread.
    """
    local = threading.local()

    def of_this_thread() -> list[str]:
        if not hasattr(local, "texts"):
            local.texts = []
        texts: list[str] = local.texts
        return texts

    with warnings.catch_warnings():
        warnings.filterwarnings("always", module=r"PIL\.")
        show = warnings.showwarning

        def keep(message: Warning | str, category: type[Warning], filename: str, *args: Any, **kwargs: Any) -> None:
            if "PIL" in Path(filename).parts:
                text = " ".join(str(message).split())
                of_this_thread().append(f"a warning of Pillow: {re.sub(r'[0-9]+', 'N', text)}")
            else:
                show(message, category, filename, *args, **kwargs)

        warnings.showwarning = keep
        yield of_this_thread


def find_broken(
    splits: Splits, workers: int = 4, progress: Callable[[int], None] | None = None, resize_size: int | None = None
) -> Broken:
    """Return the broken images of both splits and the remarks on others; `progress` counts the images of both."""
    train = look_at_all(splits.train.images, workers, progress, resize_size)
    done = len(splits.train)
    counted = (lambda count: progress(done + count)) if progress else None
    val = look_at_all(splits.val.images, workers, counted, resize_size)
    notes = repeat_notes(splits, train.digests, val.digests)
    for remark in dict.fromkeys([*train.remarks, *val.remarks]):
        names = [
            one_line(split.images.name(index))
            for split, looked in ((splits.train, train), (splits.val, val))
            for index in looked.remarks.get(remark, ())
        ]
        notes.append(f"{plural(len(names), 'image')} with {remark}: {listed(names)}")
    return Broken(tuple(train.broken), tuple(val.broken), tuple(notes))


def verified(splits: Splits, broken: Broken, on_bad_image: Literal["stop", "skip"]) -> Splits:
    """Return the splits without the broken images, which are listed in `skipped`, and with the notes of `broken`.

    Raises UserError with "stop" for any broken image, and with "skip" if a split or a class of the training images
    would be left empty.
    """
    lines = [
        f"{one_line(split.images.name(index))} ({reason})"
        for split, pairs in ((splits.train, broken.train), (splits.val, broken.val))
        for index, reason in pairs
    ]
    if broken.notes:
        splits = dataclasses.replace(splits, notes=(*splits.notes, *broken.notes))
    if not lines:
        return splits
    total = len(splits.train) + len(splits.val)
    if on_bad_image == "stop":
        raise UserError(
            f"data: {len(lines)} of {plural(total, 'image', spec='')} cannot be read: {listed(lines, most=5)}; "
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
    return dataclasses.replace(splits, train=train, val=val, skipped=(*splits.skipped, *lines))


def without_broken(
    field: str, split: Split, broken: list[tuple[int, str]], on_bad_image: Literal["stop", "skip"]
) -> tuple[Split, list[str]]:
    """Return a single split without its broken images, and a line for each of them.

    Raises UserError with "stop" for any broken image, and if no image is left.
    """
    lines = [f"{one_line(split.images.name(index))} ({reason})" for index, reason in broken]
    if lines and (on_bad_image == "stop" or len(lines) == len(split)):
        raise UserError(
            f"{field}: {len(lines)} of {plural(len(split), 'image', spec='')} cannot be read: {listed(lines, most=5)}; "
            "repair or remove them"
        )
    return _without(split, tuple(broken)), lines


def _without(split: Split, broken: tuple[tuple[int, str], ...]) -> Split:
    if not broken:
        return split
    keep = np.ones(len(split), dtype=bool)
    keep[[index for index, _ in broken]] = False
    indices = np.flatnonzero(keep)
    return Split(Subset(split.images, indices), split.targets[indices])
