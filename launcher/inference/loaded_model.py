"""A finished run's network as a plain module with all that its use takes; the data are not needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from launcher.data.decoding import to_rgb
from launcher.errors import UserError
from launcher.inference.finished_run import FinishedRun, build_network, read_finished
from launcher.metrics.calibration import read_calibration
from launcher.recipe.protocols import Preprocessing
from launcher.recipe.tasks import Classification, MultiLabel, Regression
from launcher.recipe.transforms import PixelSteps
from launcher.recipe.transforms import evaluation as evaluation_transform
from launcher.recipe.type_names import Types
from launcher.text import plural
from launcher.training.model import TransferModel

KINDS: dict[type, str] = {Classification: "classification", MultiLabel: "multi-label", Regression: "regression"}
"""Kind of the outputs of launcher's own tasks in `final/model.json`."""


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Transform of an image of any mode, as in a file, to the network's input: normalised float32 (3, S, S).

    As in validation, the image is turned upright and made opaque, its shorter side is resized, and its centre is
    cropped. The transform is picklable.
    """

    about: Preprocessing

    @property
    def steps(self) -> PixelSteps:
        """Return the evaluation transform, which also takes pixels and batches of them."""
        return evaluation_transform(self.about)

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        return self.steps(to_rgb(image))


class LoadedModel(TransferModel):
    """The network of a finished run, which maps images (N, 3, S, S) to outputs (N, num_outputs)."""

    preprocessing: Preprocess
    classes: tuple[str, ...]
    """Names of the outputs: of classes, labels, or targets."""
    kind: str
    """Kind of the outputs: "classification", "multi-label", "regression", or that of a user's own task."""
    temperature: float
    """Temperature for the logits of classes; 1.0 if none was fitted, which `python -m launcher evaluate RUN_DIR`
    does."""
    thresholds: tuple[float, ...]
    """Probabilities from which a multi-label model gives each label; 0.5 if none were fitted."""
    calibrated: bool
    """True if the logits of classes are divided by a temperature that was fitted; the logits of labels never are."""
    thresholds_fitted: bool
    """True if the thresholds of a multi-label model were fitted."""
    positives: tuple[int, ...]
    """Number of images with the label on which each threshold rests; empty if it is not known."""
    not_calibrated: str
    """Reason why the evaluation of the run fitted no temperature; empty if it did, or if there was no evaluation."""
    mean: torch.Tensor | None = None
    """Mean of each target of a regression, float64 (num_outputs,)."""
    std: torch.Tensor | None = None
    """Standard deviation of each target of a regression, float64 (num_outputs,)."""

    def interpret(self, outputs: torch.Tensor) -> torch.Tensor:
        """Convert outputs to values that a person can read.

        These are calibrated probabilities of classes, probabilities of labels, or values in the units of the targets.
        Other outputs stay as they are.
        """
        outputs = outputs.float()
        if self.kind == "classification":
            return (outputs / self.temperature).softmax(1)
        if self.kind == "multi-label":
            return outputs.sigmoid()
        if self.mean is not None and self.std is not None:
            # The CPU has float64: in float32 a time in seconds since 1970 has steps of 128 s.
            return outputs.cpu().double() * self.std + self.mean
        return outputs


def load(run_dir: Path, own: Types | None = None) -> LoadedModel:
    """Return the network of a finished run; `own` holds the classes of parts that are not launcher's.

    Raises UserError for a folder that is no finished run, and for files that do not fit each other.
    """
    return model_of(read_finished(run_dir, own))


def model_of(finished: FinishedRun) -> LoadedModel:
    """Return the network of a finished run, with its calibration; raise UserError for files that do not fit."""
    described = finished.described
    try:
        about: dict[str, Any] = described["task"]
        kind, num_outputs = str(about.get("kind")), int(described["num_outputs"])
        scale = [torch.tensor(about[name], dtype=torch.float64) for name in ("mean", "std")] if "std" in about else []
        if any(values.shape != (num_outputs,) for values in scale):
            raise ValueError(f"mean and std must be {plural(num_outputs, 'number')} each")
        if kind != (expected := KINDS.get(type(finished.recipe.task), kind)):
            raise ValueError(f"task.kind is {kind!r}, but the recipe's task gives {expected!r}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{finished.rundir.final}/model.json: does not describe a model ({error!r})") from error
    stored = read_calibration(finished.rundir.final)
    thresholds = tuple(stored.get("thresholds", [0.5] * len(finished.names)))
    if len(thresholds) != len(finished.names):
        raise UserError(
            f"{finished.rundir.final}/calibration.json: {plural(len(thresholds), 'threshold', spec='')} for "
            f"{plural(len(finished.names), 'label', spec='')}; remove it, and evaluate again"
        )
    network = build_network(finished, num_outputs)
    model = LoadedModel(network.backbone, network.head)
    model.preprocessing = Preprocess(finished.preprocessing)
    model.classes, model.kind = finished.names, kind
    model.temperature, model.thresholds = float(stored.get("temperature", 1.0)), thresholds
    model.not_calibrated = str(stored.get("reason", ""))
    model.calibrated = kind == "classification" and "temperature" in stored and not model.not_calibrated
    model.thresholds_fitted, model.positives = "thresholds" in stored, tuple(stored.get("positives", ()))
    if scale and kind == "regression":
        model.mean, model.std = scale
    return model.eval()
