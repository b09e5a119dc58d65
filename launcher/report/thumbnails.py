"""Thumbnails of samples as data URIs: few, and only as many as time and size allow."""

from __future__ import annotations

import base64
import dataclasses
import io
import time

import PIL.Image

from launcher.data.decoding import encoded_image, to_rgb
from launcher.recipe.protocols import ImageSource
from launcher.report.samples import Samples

SIDE = 144
"""Pixels of the longer side."""
QUALITY = 78
MOST_BYTES = 4_000_000
"""The limit for all thumbnails of one run together, as they stand in the file."""
MOST_SECONDS = 20.0
"""The limit for making them; an image of 12 megapixels takes a tenth of a second to read."""
SMALL = 40
"""Images of at most this many pixels a side are kept without loss, and shown with sharp pixels."""


@dataclasses.dataclass
class Thumbnail:
    """A thumbnail, with its size in pixels."""

    uri: str
    width: int
    height: int

    @property
    def is_small(self) -> bool:
        """True if it is shown with sharp pixels."""
        return max(self.width, self.height) <= SMALL


class Thumbnails:
    """The thumbnails of an evaluation's samples, each made once; `reason` says why there are none, if so."""

    def __init__(self, source: ImageSource | None, samples: Samples | None, reason: str = "") -> None:
        self.reason = reason
        self.unread: list[str] = []
        """The names of images that could not be read."""
        self.left_out: set[int] = set()
        """The samples that were asked for after the time or the bytes were used up."""
        self._source = source
        self._made: dict[int, Thumbnail | None] = {}
        self._bytes, self._seconds = 0, 0.0
        self._samples = samples
        self._places: dict[str, int] | None = None

    def of(self, sample: int) -> Thumbnail | None:
        """Return the thumbnail of a sample, or None if it cannot be read or a limit is reached."""
        if self._source is None or self._samples is None:
            return None
        if sample not in self._made:
            if self._bytes > MOST_BYTES or self._seconds > MOST_SECONDS:
                self.left_out.add(sample)
                return None
            begin = time.monotonic()
            self._made[sample] = self._make(self._source, self._samples.exact[sample], sample)
            self._seconds += time.monotonic() - begin
        return self._made[sample]

    def _make(self, source: ImageSource, name: str, sample: int) -> Thumbnail | None:
        try:
            index = self._index(source, name, sample)
            thumbnail = small(source, index) if index is not None else None
        except Exception:  # a user's own source may raise anything; the report says how many are missing
            thumbnail = None
        if thumbnail is None:
            self.unread.append(name)
        else:
            self._bytes += len(thumbnail.uri)
        return thumbnail

    def _index(self, source: ImageSource, name: str, sample: int) -> int | None:
        """Return the index of a sample in the source, or None if it is no longer there.

        Broken images may have been left out since, so that others have moved up.
        """
        if sample < len(source) and source.name(sample) == name:
            return sample
        if self._places is None:
            self._places = {source.name(index): index for index in range(len(source))}
        return self._places.get(name)


def small(source: ImageSource, index: int) -> Thumbnail:
    """Return the thumbnail of an image. Raises what the source raises."""
    if content := encoded_image(source, index):
        image: PIL.Image.Image = PIL.Image.open(io.BytesIO(content))
        image.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded at a fraction of its size
    else:
        image = source.read(index)
    image = to_rgb(image)
    image.thumbnail((SIDE, SIDE), PIL.Image.Resampling.BICUBIC, reducing_gap=3.0)
    # A few pixels take less space without loss, and should be seen as they are.
    lossless = max(image.size) <= SMALL
    return Thumbnail(webp_uri(image, 100 if lossless else QUALITY, lossless), *image.size)


def webp_uri(image: PIL.Image.Image, quality: int, lossless: bool = False) -> str:
    """Return an image as a data URI."""
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=quality, lossless=lossless, method=2)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def size_of(source: ImageSource, index: int) -> tuple[int, int]:
    """Return width and height as stored, without decoding if possible. Raises what the source raises."""
    content = encoded_image(source, index)
    width, height = (PIL.Image.open(io.BytesIO(content)) if content else source.read(index)).size
    return width, height
