"""Is an export the model? Each is run on pictures in batches of several sizes, and its outputs compared."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

import torch

from launcher.errors import UserError
from launcher.export.sample_images import Pictures
from launcher.export.target import Wanted
from launcher.inference.loaded_model import LoadedModel

BATCHES = (1, 2, 5, 8)
SHAPES = 3
"""With preprocessing in the graph: pictures of so many sizes, and three cut out of the first; each alone and in a batch
with its mirror images."""
LEVELS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""By how many of 256 levels a resized pixel may differ: rows and columns are resized one after the other, and each is
rounded to 8 bits. Few pixels differ at all: 0.3 to 3 % of pictures of noise, by ONNX Runtime."""

Runs = Callable[[torch.Tensor], torch.Tensor]
"""A batch to outputs, by whatever runs the exported file."""


@dataclasses.dataclass(frozen=True)
class Difference:
    largest: float
    """Of the outputs; of a regression in standard deviations of the targets."""
    on: str
    """Pictures and batches, for people."""
    levels: int | None = None
    """With preprocessing in the graph: of the pixels that the network gets, of 256 levels."""
    end_to_end: float | None = None
    """Likewise: of the outputs, the differences of pixels included."""


def compare(run: Runs, model: LoadedModel, wanted: Wanted, pictures: Pictures, pixels: Runs | None) -> Difference:
    """`pixels` runs the preprocessing of the export alone, where it has one.

    With it the whole is taken apart: the export's pixels must be those of the model but for rounding, and its outputs
    those of the model on these very pixels. Raises UserError beyond the tolerance.
    """
    if pixels is not None:
        return _compare_with_pixels(run, pixels, model, wanted, pictures)
    steps = model.preprocessing.steps
    ready = steps.normalise(torch.stack([steps.pixels(picture) for picture in pictures.pixels]))
    largest = 0.0
    for batch in _batches(ready):
        largest = max(largest, _apart(run(batch), _outputs(model, batch, wanted), model))
    on = f"{pictures.what} in batches of {', '.join(map(str, BATCHES[:-1]))} and {BATCHES[-1]}"
    return _within(Difference(largest, on), wanted, model, ready)


def _compare_with_pixels(run: Runs, pixels: Runs, model: LoadedModel, wanted: Wanted, pictures: Pictures) -> Difference:
    steps, about = model.preprocessing.steps, model.preprocessing.about
    largest, levels, end_to_end = 0.0, 0, 0.0
    different = _of_different_sizes(pictures.pixels, about.resize_size)
    for picture in different:
        for batch in (picture[None], torch.stack([picture, picture.flip(2), picture.flip(1), picture.flip(1, 2)])):
            laid_out = batch.permute(0, 2, 3, 1).contiguous()
            own = torch.stack([steps.pixels(one) for one in batch])
            theirs = pixels(laid_out)
            outputs = run(laid_out)
            levels = max(levels, int((own.int() - theirs.int()).abs().max()))
            largest = max(largest, _apart(outputs, _outputs(model, steps.normalise(theirs), wanted), model))
            end_to_end = max(end_to_end, _apart(outputs, _outputs(model, steps.normalise(own), wanted), model))
    on = f"pictures of {len(different)} sizes out of {pictures.what}, in batches of 1 and 4"
    ready = steps.normalise(torch.stack([steps.pixels(picture) for picture in different]))
    found = _within(Difference(largest, on, levels, end_to_end), wanted, model, ready)
    if levels > LEVELS[about.interpolation]:
        raise UserError(
            f"--to {wanted.form} --preprocess: pixels differ by {levels} of 256 levels from the model's on {on}; "
            f"{LEVELS[about.interpolation]} are allowed with {about.interpolation} interpolation; export without "
            "--preprocess"
        )
    return found


def _of_different_sizes(pixels: list[torch.Tensor], resize_size: int) -> list[torch.Tensor]:
    first: dict[tuple[int, ...], torch.Tensor] = {}
    for picture in pixels:
        first.setdefault(tuple(picture.shape), picture)
    found = list(first.values())[:SHAPES]
    _, height, width = found[0].shape
    square = found[0].repeat(1, -(-resize_size // height), -(-resize_size // width))
    for part in (
        found[0][:, : max(2, 2 * height // 3)],
        found[0][:, :, : max(2, 2 * width // 3)],
        square[:, :resize_size, :resize_size],  # nothing is left to be resized
    ):
        if part.shape not in [picture.shape for picture in found]:
            found.append(part.contiguous())
    return found


def _batches(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Of all sizes, one after the other, from the start again where there are too few."""
    start = 0
    for size in BATCHES:
        yield images[torch.arange(start, start + size) % len(images)].contiguous()
        start += size


@torch.no_grad()
def _outputs(model: LoadedModel, images: torch.Tensor, wanted: Wanted) -> torch.Tensor:
    outputs: torch.Tensor = model(images.contiguous())
    return model.interpret(outputs) if wanted.probabilities or model.mean is not None else outputs


def _apart(found: torch.Tensor, expected: torch.Tensor, model: LoadedModel) -> float:
    if found.shape != expected.shape:
        raise UserError(f"the export gives {tuple(found.shape)} where the model gives {tuple(expected.shape)}")
    differences = (found.double() - expected.double()).abs()
    if model.std is not None:
        differences = differences / model.std
    # Not a number is further away than any.
    return float(differences.max()) if bool(differences.isfinite().all()) else float("inf")


@torch.no_grad()
def rounding(model: LoadedModel, images: torch.Tensor) -> float:
    """How far the model's own logits in float32 are from those in float64: another order of the same sums, which is
    what an export computes, is about as far away."""
    exact = copy.deepcopy(model).double()(images.double())
    return float((model(images).double() - exact).abs().max())


def _within(found: Difference, wanted: Wanted, model: LoadedModel, images: torch.Tensor) -> Difference:
    if found.largest <= wanted.tolerance:
        return found
    try:
        itself = f" (float32 itself is {rounding(model, images):.2g} from float64)"
    except Exception:  # a network that is written for float32
        itself = ""
    raise UserError(
        f"--to {wanted.form}: its outputs differ by {found.largest:.2g} from those of the model on {found.on}{itself}; "
        f"allowed are {wanted.tolerance:g}, so nothing is left; give another form, or --tolerance if that will do"
    )
