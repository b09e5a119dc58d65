"""What an export is asked to be, and the words for what goes in and comes out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch

from launcher.errors import UserError
from launcher.inference.loaded_model import LoadedModel
from launcher.text import one_line

Form = Literal["onnx", "torch-export", "safetensors", "hub"]
GRAPHS: tuple[Form, ...] = ("onnx", "torch-export")
"""Forms that hold the computation; the others hold the weights alone."""
ENDINGS: dict[Form, str] = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors", "hub": "-hub"}
HUB_FILES = {
    *("README.md", "config.json", "model.safetensors", "model.pt2", "preprocess.json", "recipe.py", "report.html"),
}
"""All that a hub folder can have: one that has more is not replaced."""
TOLERANCE = 1e-3
"""How far outputs in float32 may be apart: logits, probabilities, or a regression's values in standard deviations of
its targets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    form: Form
    out: Path
    preprocess: bool = False
    """Pictures come in as a file has them: uint8 (N, height, width, 3), RGB, all of one size."""
    probabilities: bool = False
    """What comes out went through temperature and softmax, or through a sigmoid."""
    opset: int | None = None
    """Of ONNX; None is what the exporter writes unless told otherwise."""
    tolerance: float = TOLERANCE
    overwrite: bool = False
    with_images: bool = False
    """A hub folder's report shows validation images, and paths of this machine stay."""


def default_path(run_dir: Path, form: Form) -> Path:
    name = run_dir.absolute().name
    return run_dir / "export" / f"{name}{ENDINGS[form]}"


def input_name(wanted: Wanted) -> str:
    return "pictures" if wanted.preprocess else "images"


def output_name(model: LoadedModel, wanted: Wanted) -> str:
    """What the outputs are: logits, probabilities, values in the units of the targets, or a task's own outputs."""
    if model.kind in ("classification", "multi-label"):
        return "probabilities" if wanted.probabilities else "logits"
    return "values" if model.mean is not None else "outputs"


def output_dtype(model: LoadedModel) -> torch.dtype:
    """The type of the outputs of a graph. Values of which float32 would lose more than 0.01 % of a standard deviation
    of the targets are float64: a time in seconds since 1970 has steps of 128 s in float32."""
    if model.mean is None or model.std is None:
        return torch.float32
    single = torch.finfo(torch.float32)
    rounding = single.eps * model.mean.abs() / model.std
    held = (rounding < 1e-4) & (model.mean.abs() + 100 * model.std < single.max) & (model.std > 1e6 * single.tiny)
    return torch.float32 if bool(held.all()) else torch.float64


def check_fits(model: LoadedModel, wanted: Wanted) -> list[str]:
    """What of the options makes no sense for this model, one line each."""
    problems = []
    if wanted.probabilities and model.kind not in ("classification", "multi-label"):
        problems.append(f"--probabilities: a model for {model.kind} has none; leave it out")
    about = model.preprocessing.about
    if wanted.preprocess and about.resize_size < about.image_size:
        problems.append(
            f"--preprocess: pictures are resized to {about.resize_size} and then padded to {about.image_size}, which "
            "is not exported; leave it out"
        )
    return problems


def check_target(out: Path, form: Form, overwrite: bool) -> None:
    """Raises UserError where something is there already, or is in the way."""
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: is there already; give another path, or --overwrite")
    if form != "hub" and out.is_dir():
        raise UserError(f"--out {out}: is a folder; --to {form} writes a file, so give the path of one")
    if form == "hub" and out.exists():
        if not out.is_dir():
            raise UserError(f"--out {out}: is a file; --to hub writes a folder")
        if others := sorted({path.name for path in out.iterdir()} - HUB_FILES):
            raise UserError(
                f"--out {out}: --overwrite replaces what an export wrote, and this folder also has "
                f"{one_line(others[0])}; give another path"
            )
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"--out {out}: {parent} is a file, not a folder")
