"""Comparison of an export with the model: both are run on images in batches of several sizes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

import torch

from launcher.errors import UserError
from launcher.export.sample_images import SampleImages
from launcher.export.target import Options
from launcher.inference.loaded_model import LoadedModel

BATCHES = (1, 2, 5, 8)
SHAPES = 3
"""Number of image sizes with preprocessing in the graph. Three crops of the first image are added, and each image is
run alone and in a batch with its mirror images."""
LEVELS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""Levels of 256 by which a resized pixel may differ, by interpolation: rows and columns are resized one after the
other, and each result is rounded to 8 bits. Few pixels differ at all: with ONNX Runtime 0.3 to 3 % in images of
noise."""

Runs = Callable[[torch.Tensor], torch.Tensor]
"""Function from a batch to outputs that runs the exported file."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The differences between an export and the model."""

    largest: float
    """Largest difference of the outputs, for a regression in standard deviations of the targets."""
    on: str
    """Images and batches of the comparison, for people."""
    levels: int | None = None
    """Largest difference, of 256 levels, of the pixels that the network gets; only with preprocessing in the graph."""
    end_to_end: float | None = None
    """Largest difference of the outputs including that of the pixels; only with preprocessing in the graph."""


def compare(run: Runs, model: LoadedModel, options: Options, images: SampleImages, pixels: Runs | None) -> Difference:
    """Compare the outputs of an export with those of the model; raise UserError if they differ beyond the tolerance.

    `pixels` runs the preprocessing of the export alone, if it has one. With it, the two stages are compared separately:
    the export's pixels must equal those of the model but for rounding, and its outputs those of the model on the very
    same pixels.
    """
    if pixels is not None:
        return _compare_with_pixels(run, pixels, model, options, images)
    steps = model.preprocessing.steps
    ready = steps.normalise(torch.stack([steps.pixels(image) for image in images.pixels]))
    largest = max(_apart(run(batch), _outputs(model, batch, options), model) for batch in _batches(ready))
    on = f"{images.what} in batches of {', '.join(map(str, BATCHES[:-1]))} and {BATCHES[-1]}"
    return _within(Difference(largest, on), options, model, ready)


def _compare_with_pixels(
    run: Runs, pixels: Runs, model: LoadedModel, options: Options, images: SampleImages
) -> Difference:
    steps, about = model.preprocessing.steps, model.preprocessing.about
    largest, levels, end_to_end = 0.0, 0, 0.0
    different = _of_different_sizes(images.pixels, about.resize_size)
    for image in different:
        for batch in (image[None], torch.stack([image, image.flip(2), image.flip(1), image.flip(1, 2)])):
            laid_out = batch.permute(0, 2, 3, 1).contiguous()
            own = torch.stack([steps.pixels(view) for view in batch])
            theirs = pixels(laid_out)
            outputs = run(laid_out)
            levels = max(levels, int((own.int() - theirs.int()).abs().max()))
            largest = max(largest, _apart(outputs, _outputs(model, steps.normalise(theirs), options), model))
            end_to_end = max(end_to_end, _apart(outputs, _outputs(model, steps.normalise(own), options), model))
    on = f"pictures of {len(different)} sizes out of {images.what}, in batches of 1 and 4"
    ready = steps.normalise(torch.stack([steps.pixels(image) for image in different]))
    difference = _within(Difference(largest, on, levels, end_to_end), options, model, ready)
    if levels > LEVELS[about.interpolation]:
        raise UserError(
            f"--to {options.form} --preprocess: pixels differ by {levels} of 256 levels from the model's on {on}; "
            f"{LEVELS[about.interpolation]} are allowed with {about.interpolation} interpolation; export without "
            "--preprocess"
        )
    return difference


def _of_different_sizes(pixels: list[torch.Tensor], resize_size: int) -> list[torch.Tensor]:
    first: dict[tuple[int, ...], torch.Tensor] = {}
    for image in pixels:
        first.setdefault(tuple(image.shape), image)
    images = list(first.values())[:SHAPES]
    _, height, width = images[0].shape
    square = images[0].repeat(1, -(-resize_size // height), -(-resize_size // width))
    for part in (
        images[0][:, : max(2, 2 * height // 3)],
        images[0][:, :, : max(2, 2 * width // 3)],
        square[:, :resize_size, :resize_size],  # no resizing is needed
    ):
        if part.shape not in [image.shape for image in images]:
            images.append(part.contiguous())
    return images


def _batches(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield batches of all sizes, one after the other, that start over if there are too few images."""
    start = 0
    for size in BATCHES:
        yield images[torch.arange(start, start + size) % len(images)].contiguous()
        start += size


@torch.no_grad()
def _outputs(model: LoadedModel, images: torch.Tensor, options: Options) -> torch.Tensor:
    outputs: torch.Tensor = model(images.contiguous())
    return model.interpret(outputs) if options.probabilities or model.mean is not None else outputs


def _apart(outputs: torch.Tensor, expected: torch.Tensor, model: LoadedModel) -> float:
    if outputs.shape != expected.shape:
        raise UserError(f"the export gives {tuple(outputs.shape)} where the model gives {tuple(expected.shape)}")
    differences = (outputs.double() - expected.double()).abs()
    if model.std is not None:
        differences = differences / model.std
    # NaN counts as further away than any number.
    return float(differences.max()) if bool(differences.isfinite().all()) else float("inf")


@torch.no_grad()
def rounding(model: LoadedModel, images: torch.Tensor) -> float:
    """Return the largest difference between the model's own logits in float32 and in float64.

    An export computes the same sums in another order, which makes a difference of about the same size.
    """
    exact = copy.deepcopy(model).double()(images.double())
    return float((model(images).double() - exact).abs().max())


def _within(difference: Difference, options: Options, model: LoadedModel, images: torch.Tensor) -> Difference:
    if difference.largest <= options.tolerance:
        return difference
    try:
        itself = f" (float32 itself is {rounding(model, images):.2g} from float64)"
    except Exception:  # the network may be written for float32 only
        itself = ""
    raise UserError(
        f"--to {options.form}: its outputs differ by {difference.largest:.2g} from those of the model on "
        f"{difference.on}{itself}; allowed are {options.tolerance:g}, so nothing is left; give another form, or "
        "--tolerance if that will do"
    )
