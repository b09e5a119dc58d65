"""A finished run's network as a plain module, with what it takes to use it; its data are not needed."""

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
"""What `final/model.json` calls the outputs of launcher's own tasks."""


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """A picture of any mode, as a file has it, to what the network takes: normalised float32 (3, S, S). Picklable.

    Upright, opaque, its shorter side resized, its centre cropped: as in validation.
    """

    about: Preprocessing

    @property
    def steps(self) -> PixelSteps:
        """For pixels, and for batches of them."""
        return evaluation_transform(self.about)

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        return self.steps(to_rgb(image))


class LoadedModel(TransferModel):
    """Images (N, 3, S, S) to outputs (N, num_outputs)."""

    preprocessing: Preprocess
    classes: tuple[str, ...]
    """Names of the outputs: of classes, labels, or targets."""
    kind: str
    """"classification", "multi-label", "regression", or what a task of the user's own says."""
    temperature: float
    """1.0 where none was fitted: `python -m launcher evaluate RUN_DIR` does so."""
    thresholds: tuple[float, ...]
    """Of a multi-label model: the probability from which each label is given; 0.5 where none was fitted."""
    calibrated: bool
    """Whether probabilities of classes are divided by a temperature that was fitted. Those of labels never are."""
    thresholds_fitted: bool
    """Of a multi-label model: whether its thresholds were fitted."""
    positives: tuple[int, ...]
    """On how many images with the label each threshold rests; empty where it is not known."""
    not_calibrated: str
    """Why the evaluation of the run fitted no temperature; empty where it did, or where there was none yet."""
    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None
    """Of a regression: one output's unit, float64."""

    def interpret(self, outputs: torch.Tensor) -> torch.Tensor:
        """Outputs as a person reads them: calibrated probabilities of classes, probabilities of labels, values in the
        units of the targets; others as they are."""
        outputs = outputs.float()
        if self.kind == "classification":
            return (outputs / self.temperature).softmax(1)
        if self.kind == "multi-label":
            return outputs.sigmoid()
        if self.mean is not None and self.std is not None:
            # On the CPU in float64: a time in seconds since 1970 has steps of 128 s in float32.
            return outputs.cpu().double() * self.std + self.mean
        return outputs


def load(run_dir: Path, own: Types | None = None) -> LoadedModel:
    """Return the network of a finished run; `own` holds the classes of parts that are not launcher's.

    Raises UserError for a folder that is no finished run, and for files that do not fit each other.
    """
    return model_of(read_finished(run_dir, own))


def model_of(finished: FinishedRun) -> LoadedModel:
    described = finished.described
    try:
        about: dict[str, Any] = described["task"]
        kind, num_outputs = str(about.get("kind")), int(described["num_outputs"])
        scale = [torch.tensor(about[name], dtype=torch.float64) for name in ("mean", "std")] if "std" in about else []
        if any(one.shape != (num_outputs,) for one in scale):
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
