"""Images on which an export is compared with the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from launcher.data.decoding import read_pixels
from launcher.data.sources import FileImages
from launcher.errors import UserError
from launcher.inference.finished_run import FinishedRun, build_data
from launcher.inference.inputs import find_images
from launcher.recipe.protocols import ImageSource

MOST = 16
GENERATED = "generated"
"""Value of --check-on for generated images: noise of several sizes."""


@dataclasses.dataclass(frozen=True)
class SampleImages:
    """Raw images on which an export is compared with the model."""

    pixels: list[torch.Tensor]
    """Pixels of each image, uint8 (3, height, width)."""
    what: str
    """Description for people: "16 validation images"."""


def sample_images(finished: FinishedRun, check_on: str | None) -> SampleImages:
    """Return images from `check_on`, or validation images of the run if it is None.

    Raises UserError if they cannot be read.
    """
    if check_on == GENERATED and not Path(GENERATED).exists():
        return generated(finished)
    if check_on is not None:
        paths = find_images([check_on]).images
        return _read(FileImages("", paths), f"images of {check_on}", f"--check-on {check_on}")
    advice = "give --check-on FOLDER, a folder of images of the same kind, or --check-on generated"
    try:
        images = build_data(finished).val.images
    except UserError as error:
        problems = (f"the run's validation images cannot be had: {problem}" for problem in error.problems)
        raise UserError(*problems, advice) from error
    return _read(images, "validation images", "the run's validation images", f"; {advice}")


def generated(finished: FinishedRun) -> SampleImages:
    """Return images of smooth noise in several sizes and both orientations, which are always the same."""
    generator = torch.Generator().manual_seed(0)
    side = finished.preprocessing.resize_size
    shapes = [(side, side), (side + 31, 2 * side), (3 * side // 2, side), (side + 1, side + 64)]
    pixels = []
    for index in range(MOST):
        coarse = torch.rand(1, 3, 7, 7, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, shapes[index % len(shapes)], mode="bilinear")[0]
        fine = fine * 255 + torch.randn(fine.shape, generator=generator) * 16
        pixels.append(fine.clamp(0, 255).to(torch.uint8))
    return SampleImages(pixels, f"{MOST} generated pictures (no real images were read)")


def _read(images: ImageSource, what: str, field: str, advice: str = "") -> SampleImages:
    """Read at most MOST images that are spread evenly over all, and skip those that cannot be read."""
    count = min(MOST, len(images))
    pixels, why = [], "there are none"
    for place in range(count):
        try:
            pixels.append(read_pixels(images, place * len(images) // count).contiguous())
        except MemoryError:
            raise
        except Exception as error:  # a user's own source may raise anything
            why = str(error) or type(error).__name__
    if not pixels:
        raise UserError(f"{field}: none can be read ({why}){advice}")
    return SampleImages(pixels, f"{len(pixels)} {what}")
