"""The command `predict`: predictions of a finished run's model for images, in batches on one device."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from launcher.data.decoding import Decoder, too_narrow, why_broken
from launcher.data.sources import FileImages
from launcher.errors import Problems, UserError
from launcher.inference.finished_run import FinishedRun, read_finished
from launcher.inference.inputs import find_images
from launcher.inference.loaded_model import LoadedModel, model_of
from launcher.inference.prediction_reporter import PredictionReporter
from launcher.inference.prediction_table import Form, Output, rows_in
from launcher.metrics.calibration import few_positives
from launcher.recipe.loading import recipe_words, types_of_files
from launcher.recipe.transforms import PixelSteps
from launcher.text import plural
from launcher.training.accelerator import recorded_precision
from launcher.training.launch import usable_cpus


def predict_files(
    run_dir: Path,
    words: Sequence[str],
    recipes: Sequence[str] | None,
    *,
    form: Form,
    top: int,
    to: Path | None,
    batch_size: int,
    device: str | None,
) -> int:
    """Predict the images for which `words` stand with the model of a finished run; return how many cannot be read.

    The predictions go to `to`, or else to standard output. `recipes` are recipe files that define parts of the user's
    own. Raises UserError with all that is wrong, and then nothing is written.
    """
    problems = Problems()
    with problems.collected():
        finished = read_finished(run_dir, types_of_files(recipes))
    with problems.collected():
        inputs = find_images(words)
    with problems.collected():
        place = device_named(device)
    problems.raise_if_any()
    model, precision = model_of(finished), precision_on(place, finished)
    with Output(to, sys.stdout.buffer if sys.stdout else io.BytesIO()) as output:  # stdout may be closed
        rows = rows_in(form, model, top, output.stream)
        with PredictionReporter(len(inputs.images)) as reporter:
            reporter.print(_how(model, run_dir, recipe_words(recipes)))
            for path in inputs.left_out:
                reporter.name("left out (not an image)", path)
            for part in predict(
                model,
                inputs.images,
                device=place,
                precision=precision,
                batch_size=batch_size,
                num_threads=usable_cpus(),
            ):
                with output.errors_reported():
                    rows.add(part.names, part.results)
                for path, reason in part.broken:
                    reporter.name("cannot be read", path, reason)
                reporter.advance(len(part.names), len(part.broken))
        with output.errors_reported():
            rows.close()
    reporter.end(to)
    return reporter.broken


def _how(model: LoadedModel, run: Path, recipe: str) -> str:
    """Say whether probabilities are calibrated, and from which thresholds labels are given."""
    named = shlex.quote(str(run))
    if model.kind not in ("classification", "multi-label"):
        return ""
    if model.kind == "multi-label":
        if not model.thresholds_fitted:
            return (
                f"labels from a probability of 0.5 on; to fit thresholds: python -m launcher evaluate {named}{recipe}"
            )
        few = few_positives(dict(zip(model.classes, model.positives, strict=False)))
        doubt = f"; some rest on few images: {few}" if few else ""
        return f"labels from the thresholds in {run}/final/calibration.json; probabilities not calibrated{doubt}"
    if model.not_calibrated:
        return f"probabilities not calibrated: {model.not_calibrated}"
    if not model.calibrated:
        return f"probabilities not calibrated; to calibrate: python -m launcher evaluate {named}{recipe}"
    return f"probabilities calibrated with temperature {model.temperature:.4g} ({run}/final/calibration.json)"


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for a batch of images."""

    names: list[str]
    results: torch.Tensor
    """Results of `LoadedModel.interpret`, float32 (len(names), outputs), on the CPU."""
    broken: list[tuple[str, str]]
    """Images that could not be read, with the reasons."""


@torch.inference_mode()
def predict(
    model: LoadedModel,
    paths: Sequence[str],
    *,
    device: torch.device,
    precision: torch.dtype | None = None,
    batch_size: int = 64,
    num_threads: int = 1,
) -> Iterator[Predictions]:
    """Yield predictions for the images in the order of `paths`, and read the next batch while the network computes.

    Raises UserError if the device has too little memory for a batch.
    """
    steps, resize_size = model.preprocessing.steps, model.preprocessing.about.resize_size
    decoder = Decoder(FileImages("", paths))
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    starts = range(0, len(paths), batch_size)
    with ThreadPoolExecutor(max_workers=max(1, num_threads)) as pool:

        def begin(start: int) -> list[Future[torch.Tensor | str]]:
            return [
                pool.submit(_read, decoder, i, steps, resize_size)
                for i in range(start, min(start + batch_size, len(paths)))
            ]

        ahead = begin(0) if paths else []
        for start in starts:
            reading, ahead = ahead, begin(start + batch_size)
            names, pixels, broken = [], [], []
            for path, future in zip(paths[start : start + batch_size], reading, strict=True):
                read = future.result()
                if isinstance(read, str):
                    broken.append((path, read))
                else:
                    names.append(path)
                    pixels.append(read)
            yield Predictions(names, _results(model, pixels, device, precision), broken)


def _read(decoder: Decoder, index: int, steps: PixelSteps, resize_size: int) -> torch.Tensor | str:
    """Return an image's pixels at the network's size, or why they cannot be had."""
    try:
        pixels = decoder.pixels(index)
        height, width = pixels.shape[1:]
        if why := too_narrow(width, height, resize_size):
            return why
        return steps.pixels(pixels)
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, ...
        return why_broken(error)


def _results(
    model: LoadedModel, pixels: list[torch.Tensor], device: torch.device, precision: torch.dtype | None
) -> torch.Tensor:
    if not pixels:
        return model.interpret(torch.zeros(0, len(model.classes)))
    batch = torch.stack([image.permute(1, 2, 0) for image in pixels]).permute(0, 3, 1, 2)
    lower = torch.autocast(device.type, precision) if precision else contextlib.nullcontext()
    try:
        with lower:
            outputs = model(model.preprocessing.steps.normalise(batch.to(device)))
        return model.interpret(outputs).cpu()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{device}: too little memory for {plural(len(pixels), 'image', spec='')}; give a smaller --batch"
        ) from error


def device_named(name: str | None) -> torch.device:
    """Return the named device, or else the accelerator of this machine, or else the CPU.

    Raises UserError for a device that this machine does not have.
    """
    here = ["cpu"]
    if torch.cuda.is_available():
        here += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        here.append("mps")
    if name is None:
        return torch.device(here[1] if len(here) > 1 else "cpu")
    if (f"{name}:0" if name == "cuda" else name) not in here:
        raise UserError(f"--device {name}: no such device here; there is {', '.join(here)}")
    return torch.device(name)


def precision_on(device: torch.device, finished: FinishedRun) -> torch.dtype | None:
    """Return the precision of the forward pass, which is that of training; None is float32.

    On CPUs it is float32 in place of fp16, which is for GPUs only.
    """
    precision: str | None = finished.recipe.mixed_precision
    if precision == "auto":
        precision = recorded_precision(finished.rundir.path)
    if precision == "bf16" and device.type in ("cpu", "cuda"):
        return torch.bfloat16
    return torch.float16 if precision == "fp16" and device.type == "cuda" else None
