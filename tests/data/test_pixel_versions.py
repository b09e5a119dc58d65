"""Stored features go by version constants: where a test here fails, raise the constant that it names, and pin anew."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import PIL.Image
import pytest
import torch

from launcher import Preprocessing, transforms
from launcher.data.decoding import PIXELS_VERSION, open_image, to_rgb
from launcher.recipe.transforms import VIEWS_VERSION, evaluation, pixels_of

WIDTH, HEIGHT = 6, 4


def ramp(channels: int, dtype: type = np.uint8) -> np.ndarray:
    top = np.iinfo(dtype).max
    return (np.arange(HEIGHT * WIDTH * channels) * 37 % 251 / 250 * top).astype(dtype).reshape(HEIGHT, WIDTH, channels)


def awkward(kind: str) -> bytes:
    """Lossless files, so that no version of a codec matters."""
    options: dict[str, object] = {"format": "PNG"}
    if kind == "grey, 16 bits":
        image = PIL.Image.fromarray(ramp(1, np.uint16)[..., 0])
    elif kind == "palette, transparent":
        image = PIL.Image.fromarray(ramp(1)[..., 0] % 4).convert("P")
        image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 90, 90, 90])
        options["transparency"] = 1
    elif kind == "one bit":
        image = PIL.Image.fromarray(ramp(1)[..., 0]).convert("1", dither=PIL.Image.Dither.NONE)
    elif kind == "turned by EXIF":
        image = PIL.Image.fromarray(ramp(3))
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        options["exif"] = exif
    elif kind == "CMYK":
        image, options["format"] = PIL.Image.frombytes("CMYK", (WIDTH, HEIGHT), ramp(4).tobytes()), "TIFF"
    else:
        channels = {"grey with alpha": 2, "colour": 3, "colour with alpha": 4}[kind]
        image = PIL.Image.fromarray(ramp(channels))
    content = io.BytesIO()
    image.save(content, **options)  # type: ignore[arg-type]
    return content.getvalue()


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("colour", "cbba3ed555d69da5"),
        ("colour with alpha", "cf4e69305d0afa44"),
        ("grey with alpha", "3ca95cdff05076cb"),
        ("grey, 16 bits", "a577ce9154bd163c"),
        ("one bit", "21dbf653056e1ce3"),
        ("palette, transparent", "f8e14390510c7fc3"),
        ("turned by EXIF", "328ad5d92cff92f3"),
        ("CMYK", "2a315c70d98beb38"),
    ],
)
def test_the_pixels_of_awkward_files(kind: str, digest: str) -> None:
    image = to_rgb(open_image(awkward(kind)))
    assert image.mode == "RGB"
    assert image.size == ((HEIGHT, WIDTH) if "EXIF" in kind else (WIDTH, HEIGHT))
    found = hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()
    assert (PIXELS_VERSION, found) == (1, digest), "decoding.PIXELS_VERSION"


@pytest.mark.parametrize(
    ("view", "means"),
    [
        ("evaluation", [[78.5, 158.5, 78.5, 158.5], [64.7, 64.7, 171.3, 171.3], [128.7, 127.9, 127.1, 126.9]]),
        ("light", [[96.0, 171.0, 96.0, 171.0], [46.0, 46.0, 134.0, 134.0], [122.5, 125.0, 125.1, 125.5]]),
        ("trivial", [[162.0, 251.6, 162.0, 251.6], [77.4, 77.4, 219.3, 219.3], [186.0, 195.9, 194.9, 200.6]]),
        ("randaugment", [[69.6, 124.3, 66.4, 106.9], [35.4, 41.1, 94.5, 87.2], [91.0, 91.6, 86.8, 78.7]]),
        ("none", [[78.5, 158.5, 78.5, 158.5], [64.7, 64.7, 171.3, 171.3], [128.7, 127.9, 127.1, 126.9]]),
    ],
)
def test_the_views_of_an_image(view: str, means: list[list[float]]) -> None:
    """By the means of its quarters, within a level: processors may round otherwise."""
    down, right = np.mgrid[:60, :80]
    image = PIL.Image.fromarray(np.stack([3 * right, 4 * down, (down * right) % 256], axis=-1).astype(np.uint8))
    how = Preprocessing(image_size=32, resize_size=36)
    transform = (
        evaluation(how) if view == "evaluation" else transforms.Augment(preset=view, random_erasing=0.5).build(how)  # type: ignore[arg-type]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        pixels = transform.pixels(pixels_of(image)).double()
    quarters = pixels.reshape(3, 2, 16, 2, 16).mean(dim=(2, 4)).reshape(3, 4)
    assert VIEWS_VERSION == 1, "transforms.VIEWS_VERSION"
    torch.testing.assert_close(quarters, torch.tensor(means, dtype=torch.float64), rtol=0, atol=1.0)
