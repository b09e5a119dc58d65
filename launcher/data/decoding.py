"""Decoding of images from every source: the same image gives the same RGB pixels, wherever it comes from.

Libraries disagree on pixels: some ignore the EXIF orientation, clip 16-bit grey to white, or show the colour that is
hidden under full transparency. All sources therefore return images as stored, and `to_rgb` alone decides how they look.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from launcher.assets.git_lfs import LFS_POINTER, is_lfs_pointer
from launcher.files import check_file
from launcher.recipe.abilities import HoldsEncodedImages, HoldsPixels
from launcher.recipe.protocols import ImageSource
from launcher.recipe.transforms import PixelSteps, RandomCrop, pixels_of

if TYPE_CHECKING:
    import torch

BACKGROUND = (255, 255, 255)
"""Colour behind transparent pixels: white, as on the pages and screens that such images are made for."""

PIXELS_VERSION = 1
"""Version of the decoding, to be raised when the same file gives different pixels: stored features then get another
name and are computed again."""

SUFFIXES = frozenset(
    f".{ending}"
    for ending in (
        *("avif", "bmp", "dib", "gif", "heic", "heif", "ico", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg"),
        *("pbm", "pgm", "png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)
"""Suffixes of image files. HEIC is among them although Pillow needs a plugin for it: such a file is then reported as
unreadable, whereas leaving it out as "not an image" would lose a phone's photos."""

MOST_BYTES = 2**31
"""Largest size of an image file, in bytes. The largest image that Pillow decodes, 179 million pixels of 16 bits in four
channels, takes 1.4 GB."""
LARGEST = 2**27
"""Largest number of pixels of a resized image, 400 MB. An image of 1 x 20,000 pixels, enlarged to a shorter side of
256, would have 1.3 billion."""

# Pillow's warnings name neither the image nor the harm; the check of all images counts and names them (image_check.py).
warnings.filterwarnings("ignore", module=r"PIL\.\w*Image\w*$")

_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImageError(OSError):
    """Error for an image that cannot be read; the message names it and says why.

    Picklable, so that worker processes can pass it on.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = " ".join(reason.split())

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def why_broken(error: Exception) -> str:
    """Return on one line why an image cannot be read; raise a MemoryError again, as it says nothing of the image."""
    if isinstance(error, MemoryError):
        raise error
    text = error.reason if isinstance(error, BrokenImageError) else str(error)
    return " ".join(text.split()) or type(error).__name__


def open_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Decode the first frame of an image file (a path) or of its content (bytes), in the mode in which it is stored.

    `name` identifies the image in errors; by default it is the path.

    Raises BrokenImageError for an image that is missing, empty, truncated, not an image at all, or so large that
    decoding it could exhaust the memory.
    """
    try:
        if not isinstance(source, bytes):
            check_regular(source)
        image: Image.Image
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error, EOFError, ...
        if isinstance(source, bytes):
            name, reason = name or "image", str(error)
            if not source:
                reason = "empty"
            elif is_lfs_pointer(source):
                reason = LFS_POINTER
            elif isinstance(error, UnidentifiedImageError):
                reason = "not an image that Pillow can read"  # its own words name a BytesIO object
        else:
            name, reason = name or str(source), _reason(Path(source), error)
        raise BrokenImageError(name, reason or type(error).__name__) from error
    return image


def check_regular(path: str | Path) -> None:
    """Raise OSError for a file that is too large, and for anything but a file: reading a named pipe may never end."""
    status = check_file(path)
    if status.st_size > MOST_BYTES:
        raise OSError(f"{status.st_size:,} bytes are too many for an image; at most {MOST_BYTES:,} are read")


def too_narrow(width: int, height: int, resize_size: int) -> str | None:
    """Return why an image cannot be resized to a shorter side of `resize_size` pixels, or None if it can.

    An image of 1 x 60,000 pixels, for example, would become 256 x 15 million: 12 GB.
    """
    if max(height, width) * resize_size**2 <= LARGEST * min(height, width):
        return None
    return f"{width} x {height} pixels: too narrow to be enlarged to a shorter side of {resize_size}"


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        if is_lfs_pointer(path):
            return LFS_POINTER
        return "not an image that Pillow can read" if path.stat().st_size else "empty file"
    return getattr(error, "strerror", None) or str(error)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image as a person sees it: upright (EXIF orientation applied), 8 bits, opaque, RGB.

    16-bit grey is scaled by 255 / 65535 and rounded; mode "I", in which Pillow reads some 16-bit files, counts as
    16 bits and must lie in 0 to 65535. Transparency of any kind (alpha, palette, a transparent colour) is composited on
    BACKGROUND. CMYK and other modes are converted by Pillow, which knows that Adobe writes CMYK inverted.

    Raises ValueError for pixels without a stated range (floating point, 32-bit integers) and for unreadable EXIF data.
    """
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # a malformed block: SyntaxError, struct.error, ...
        raise ValueError(f"unreadable EXIF data, so which way is up is unknown: {error}") from error
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range; store the image with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        rgb = _from_16_bits(image)
    elif image.has_transparency_data:
        straight = {"RGBa": "RGBA", "La": "LA"}.get(image.mode)  # premultiplied alpha
        rgba = (image.convert(straight) if straight else image).convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), rgba).convert("RGB")
    elif image.mode == "RGB":
        rgb = image
    else:
        rgb = image.convert("RGB")
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    if rgb is not image:
        rgb.info = {}  # drops the orientation above all, which must not be applied again
    return rgb


class Decoder:
    """Decoder for the images of a source; picklable, as the source is.

    The source's abilities are looked up once: per image this would take 24 microseconds (files, Python 3.11).
    """

    def __init__(self, images: ImageSource) -> None:
        self.images = images
        self._pixels = images if isinstance(images, HoldsPixels) else None
        # A user's own source may use this name for something else.
        self._encoded = images if isinstance(images, HoldsEncodedImages) and callable(images.encoded) else None

    def encoded(self, index: int) -> bytes | None:
        """Return the content of the image file, or None if the source does not have it."""
        return None if self._encoded is None else self._encoded.encoded(index)

    def pixels(self, index: int) -> torch.Tensor:
        """Return an image's pixels as `to_rgb` gives them: uint8 (3, height, width), channels last in memory."""
        if self._pixels is not None:
            import torch

            return torch.from_numpy(self._pixels.stored_pixels(index)).permute(2, 0, 1)
        content = self.encoded(index)
        if not content:
            return pixels_of(to_rgb(self.images.read(index)))
        pixels = _plain_jpeg(content)
        return pixels_of(to_rgb(open_image(content, self.images.name(index)))) if pixels is None else pixels

    def transformed(self, index: int, transform: PixelSteps) -> torch.Tensor:
        """Return an image's pixels after the steps of a transform: uint8 (3, S, S).

        If the first step crops, a large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as long as the crop still has
        `transforms.SPARE` times S pixels along each side (see there). The crop is the same, drawn from the same random
        numbers.
        """
        crop = transform.steps[0] if transform.steps else None
        if isinstance(crop, RandomCrop) and (jpeg := self.plain_jpeg(index)):
            window = crop.window(jpeg.height, jpeg.width)
            reduced = window.may_be_reduced_by(crop.preprocessing.image_size)
            try:
                pixels = jpeg.pixels(reduced)
            except MemoryError:
                raise
            except Exception:  # whatever is wrong, decoding in the usual way reports it
                reduced, pixels = 1, self.pixels(index)
            return transform.pixels(crop.cut(pixels, window.reduced(reduced, *pixels.shape[1:])), start=1)
        return transform.pixels(self.pixels(index))

    def plain_jpeg(self, index: int) -> PlainJpeg | None:
        """Return an image as a plain JPEG, not decoded yet, or None if it is not one or cannot be read."""
        content = None if self._pixels is not None else self.encoded(index)
        return _plain(content) if content else None


def read_pixels(images: ImageSource, index: int) -> torch.Tensor:
    """Return an image's pixels as `Decoder.pixels` does, for callers that read only a few images of a source."""
    return Decoder(images).pixels(index)


def encoded_image(images: ImageSource, index: int) -> bytes | None:
    """Return an image's content as `Decoder.encoded` does, for callers that read only a few images of a source."""
    return Decoder(images).encoded(index)


@dataclasses.dataclass(frozen=True)
class PlainJpeg:
    """An upright JPEG in RGB or grey, not decoded yet."""

    content: bytes
    height: int
    width: int

    def pixels(self, reduced: int = 1) -> torch.Tensor:
        """Decode to Pillow's pixels, uint8 (3, height, width), each side divided by 1, 2, 4 or 8 and rounded up.

        libjpeg makes the smaller image from the lower frequencies alone, which for 12 million pixels takes 0.54 to 0.66
        of the time. Raises whatever the decoders raise, and ValueError for an unexpected size.
        """
        import torch

        height, width = -(-self.height // reduced), -(-self.width // reduced)
        decode = _faster_decoder()
        if decode is None:
            image = Image.open(io.BytesIO(self.content))
            image.draft(None, (self.width // reduced, self.height // reduced))
            pixels = pixels_of(to_rgb(image))
        else:
            pixels = torch.from_numpy(decode(self.content, min_height=height, min_width=width)).permute(2, 0, 1)
        if pixels.shape != (3, height, width):
            raise ValueError(f"{tuple(pixels.shape)} is not 1/{reduced} of {self.height} x {self.width}")
        return pixels


def _plain(content: bytes) -> PlainJpeg | None:
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    try:
        header = Image.open(io.BytesIO(content))  # not decoded; an image that is too large is refused here
        upright = header.getexif().get(_ORIENTATION, 1) not in _UPRIGHT
        if header.format == "JPEG" and header.mode in ("RGB", "L") and upright:
            return PlainJpeg(content, header.height, header.width)
    except MemoryError:
        raise
    except Exception:  # noqa: S110 - Pillow will meet the same error again
        pass
    return None


def _plain_jpeg(content: bytes) -> torch.Tensor | None:
    """Return Pillow's pixels of a plain JPEG in 3/4 of Pillow's time, or None for Pillow to decode it.

    None is for other images, broken ones, and where simplejpeg (the extra `fast`) is not installed.
    """
    jpeg = None if _faster_decoder() is None else _plain(content)
    if jpeg is not None:
        try:
            return jpeg.pixels()
        except MemoryError:
            raise
        except Exception:  # noqa: S110 - Pillow will meet the same error again
            pass
    return None


def can_tell_damage() -> bool:
    """Return whether a decoder that refuses damaged JPEG data is available; Pillow repairs such data silently."""
    return _faster_decoder() is not None


@functools.cache
def _faster_decoder() -> Callable[..., npt.NDArray[np.uint8]] | None:
    """Return simplejpeg's decoder if it is installed and gives exactly Pillow's pixels on this machine, else None.

    The wheels of both contain libjpeg-turbo; other builds may use another library, whose pixels differ.
    """
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((61, 47), Image.Resampling.BICUBIC)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85, subsampling=subsampling)
        for reduced in (1, 2, 4, 8):
            smaller = Image.open(buffer)
            smaller.draft("RGB", (61 // reduced, 47 // reduced))
            theirs = decode_jpeg(buffer.getvalue(), min_height=-(-47 // reduced), min_width=-(-61 // reduced))
            if not np.array_equal(theirs, np.asarray(smaller)):
                return None
    decoder: Callable[..., npt.NDArray[np.uint8]] = decode_jpeg
    return decoder


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise ValueError(
            f"pixels from {values.min()} to {values.max()} have no stated range; store the image with 8 or 16 bits"
        )
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=2)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = BACKGROUND
    return Image.fromarray(pixels)
