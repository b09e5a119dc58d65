"""Options of an export, and the names of its inputs and outputs. Imports no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launcher.errors import UserError
from launcher.text import one_line

if TYPE_CHECKING:
    from launcher.inference.loaded_model import LoadedModel

Form = Literal["onnx", "torch-export", "safetensors", "hub"]
GRAPHS: tuple[Form, ...] = ("onnx", "torch-export")
"""Forms that hold the computation; the others hold only the weights."""
ENDINGS: dict[Form, str] = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors", "hub": "-hub"}
HUB_FILES = {
    *("README.md", "config.json", "model.safetensors", "model.pt2", "preprocess.json", "recipe.py", "report.html"),
}
"""All files that a hub folder can have; a folder with others is not replaced."""
TOLERANCE = 1e-3
"""Largest allowed difference of outputs in float32: logits, probabilities, or a regression's values in standard
deviations of its targets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of an export."""

    form: Form
    out: Path
    preprocess: bool = False
    """If True, the graph takes images as in a file: uint8 (N, height, width, 3), RGB, all of one size."""
    probabilities: bool = False
    """If True, the graph returns probabilities: it applies temperature and softmax, or a sigmoid."""
    opset: int | None = None
    """Opset of ONNX; None is the exporter's default."""
    tolerance: float = TOLERANCE
    overwrite: bool = False
    with_images: bool = False
    """If True, a hub folder's report shows validation images, and paths of this machine stay in the folder."""
    license_name: str | None = None
    """License that a hub folder's card names."""
    upload_to: str | None = None
    """Repository of the hub, OWNER/NAME, to which a hub folder is uploaded."""
    private: bool = False
    """If True, a new repository is private."""
    check_on: str | None = None
    """Folder of images to compare on, or "generated"; None for the run's validation images."""


def default_path(run_dir: Path, form: Form) -> Path:
    """Return the path of an export for which the user gives none."""
    name = run_dir.absolute().name
    return run_dir / "export" / f"{name}{ENDINGS[form]}"


def input_name(options: Options) -> str:
    """Return the name of the input, which says whether it is raw images or images ready for the network."""
    return "pictures" if options.preprocess else "images"


def output_name(model: LoadedModel, options: Options) -> str:
    """Return the name of the outputs of a graph.

    They are logits, probabilities, values in the units of the targets, or the outputs of a user's own task.
    """
    if model.kind in ("classification", "multi-label"):
        return "probabilities" if options.probabilities else "logits"
    return "values" if model.mean is not None else "outputs"


def check_fits(model: LoadedModel, options: Options) -> list[str]:
    """Return one line for each option that makes no sense for this model."""
    problems = []
    if options.probabilities and model.kind not in ("classification", "multi-label"):
        problems.append(f"--probabilities: a model for {model.kind} has none; leave it out")
    about = model.preprocessing.about
    if options.preprocess and about.resize_size < about.image_size:
        problems.append(
            f"--preprocess: pictures are resized to {about.resize_size} and then padded to {about.image_size}, which "
            "is not exported; leave it out"
        )
    return problems


def check_target(out: Path, form: Form, overwrite: bool) -> None:
    """Raise UserError if the target exists and may not be replaced, or if something else is in the way."""
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
