"""A sample of the images, opened to see how large they are and how many cannot be read."""

from __future__ import annotations

import dataclasses
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from launcher.data.decoding import BrokenImageError, Decoder, to_rgb
from launcher.data.duplicates import digest, repeat_notes
from launcher.errors import UserError
from launcher.recipe.protocols import ImageSource, Splits
from launcher.text import listed, one_line, plural
from launcher.training.launch import usable_cpus

MOST = 200
"""The most images to open; the median of their sizes is then known to a few per cent."""
SECONDS = 3.0
"""The time after which no more are begun; photographs of 12 megapixels take a tenth of a second each."""


@dataclasses.dataclass(frozen=True)
class ImageFindings:
    """The findings from a sample of the images."""

    looked_at: int
    broken: tuple[str, ...]
    """The names of images that cannot be read, with the reasons."""
    width: int
    height: int
    """Median width and height, in pixels, of the images that can be read."""
    shortest: int
    """The median of their shorter sides."""
    same_size: bool
    notes: tuple[str, ...] = ()
    """Lines on images that come twice, in both splits or with different targets."""


def look_at(splits: Splits) -> ImageFindings:
    """Open some images of both splits, the same ones each time. Raises UserError if none can be read."""
    chosen = _chosen(splits)
    sizes: list[tuple[int, int]] = []
    broken: list[str] = []
    looked_at, begin, cpus = 0, time.monotonic(), usable_cpus()
    with ThreadPoolExecutor(cpus) as pool:
        for start in range(0, len(chosen), 4 * cpus):
            if time.monotonic() - begin > SECONDS:
                break
            part = chosen[start : start + 4 * cpus]
            looked_at += len(part)
            for size, why in pool.map(_opened, part):
                if size:
                    sizes.append(size)
                else:
                    broken.append(why)
    if not sizes:
        raise UserError(
            f"data: none of the {plural(looked_at, 'image', spec='')} looked at can be read: {listed(broken)}"
        )
    return ImageFindings(
        looked_at=looked_at,
        broken=tuple(broken),
        width=round(statistics.median(width for width, _ in sizes)),
        height=round(statistics.median(height for _, height in sizes)),
        shortest=round(statistics.median(min(size) for size in sizes)),
        same_size=len(set(sizes)) == 1,
        notes=tuple(_repeats(splits, cpus)),
    )


def _repeats(splits: Splits, cpus: int) -> list[str]:
    """Return lines on images that come twice, or none if reading all images takes more than SECONDS."""
    begin = time.monotonic()

    def digest_of(place: tuple[Decoder, int]) -> bytes | None:
        decoder, index = place
        try:
            content = decoder.encoded(index)
            return digest(content, None if content is not None else decoder.images.read(index))
        except MemoryError:
            raise
        except Exception:  # a broken image is reported by the check of all images
            return None

    digests: list[list[bytes | None]] = []
    with ThreadPoolExecutor(cpus) as pool:
        for split in (splits.val, splits.train):
            decoder = Decoder(split.images)
            places = [(decoder, index) for index in range(len(split))]
            keys: list[bytes | None] = []
            for start in range(0, len(places), 256):
                if time.monotonic() - begin > SECONDS:
                    return []  # `plan` and the start of a run compare all of them
                keys += pool.map(digest_of, places[start : start + 256])
            digests.append(keys)
    return repeat_notes(splits, digests[1], digests[0])


def _chosen(splits: Splits) -> list[tuple[ImageSource, int]]:
    every = len(splits.train) + len(splits.val)
    drawn = np.random.PCG64(0).random_raw(every)  # its stream is the same in all versions of numpy
    return [
        (splits.train.images, int(index))
        if index < len(splits.train)
        else (splits.val.images, int(index) - len(splits.train))
        for index in np.argsort(drawn, kind="stable")[:MOST]
    ]


def _opened(place: tuple[ImageSource, int]) -> tuple[tuple[int, int] | None, str]:
    """Return width and height of an image, or None and why it cannot be read."""
    images, index = place
    try:
        return to_rgb(images.read(index)).size, ""
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they like, as in `image_check.look_at_all`
        reason = error.reason if isinstance(error, BrokenImageError) else str(error) or type(error).__name__
        return None, f"{one_line(images.name(index))} ({reason})"
