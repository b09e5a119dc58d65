"""Built tasks: losses per sample and metrics over all samples."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from launcher.errors import UserError
from launcher.metrics import classification, multilabel, regression
from launcher.metrics.formula import Formula, plain_metrics
from launcher.recipe.protocols import Splits
from launcher.text import plural

Mode = Literal["max", "min"]
Floats = npt.NDArray[np.float64]

LARGEST, SMALLEST = 1e150, 1e-150
"""Bounds on the size and the spread of regression targets: float64, which spans 2.2e-308 to 1.8e308, holds their
squares."""


class BuiltClassification:
    """Classification of training targets that are known.

    Outputs are logits (N, num_classes); targets are int64 (N,), or float (N, num_classes) if images are mixed.
    """

    monitor = "accuracy"
    monitor_mode: Mode = "max"

    def __init__(
        self, splits: Splits, label_smoothing: float = 0.0, class_weights: tuple[float, ...] | str | None = None
    ) -> None:
        """`class_weights` is "balanced", one for each class, or None."""
        self.names = splits.names
        self.num_outputs = len(splits.names)
        self.label_smoothing = label_smoothing
        self.weights: torch.Tensor | None = None
        if self.num_outputs < 2:
            raise UserError(f"task: classification needs at least two classes, the data has {list(splits.names)}")
        if class_weights is not None:
            self.weights = _class_weights(class_weights, splits)

    def encode(self, targets: torch.Tensor) -> torch.Tensor:
        return F.one_hot(targets, self.num_outputs).float()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weights = None if self.weights is None else self.weights.to(outputs.device)
        return F.cross_entropy(
            outputs.float(), targets, weight=weights, reduction="none", label_smoothing=self.label_smoothing
        )

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        formulas = classification.formulas(outputs.float(), targets, self.names, keep=False)
        return _defined(formulas, targets, self.undefined(targets))

    def undefined(self, targets: torch.Tensor) -> dict[str, str]:
        return classification.undefined(targets, self.names)

    def describe(self) -> dict[str, Any]:
        return {"kind": "classification", "outputs": "logits; softmax gives probabilities"}


class BuiltMultiLabel:
    """Multi-label classification of training targets that are known.

    Outputs are logits (N, num_labels); targets are float32 (N, num_labels) in [0, 1].
    """

    monitor = "map"
    monitor_mode: Mode = "max"

    def __init__(self, splits: Splits, pos_weight: tuple[float, ...] | str | None = None) -> None:
        """`pos_weight` is "balanced", one for each label, or None."""
        self.names = splits.names
        self.num_outputs = len(splits.names)
        positives = splits.train.targets.sum(axis=0)
        self.pos_weight: torch.Tensor | None = None
        if pos_weight == "balanced":
            absent = [name for name, count in zip(splits.names, positives, strict=True) if count == 0]
            if absent:
                raise UserError(f"task.pos_weight='balanced': no training image has the labels {absent}; give values")
            self.pos_weight = torch.tensor((len(splits.train) - positives) / positives, dtype=torch.float32)
        elif pos_weight is not None:
            self.pos_weight = torch.tensor(_one_for_each("task.pos_weight", pos_weight, splits))

    def encode(self, targets: torch.Tensor) -> torch.Tensor:
        return targets

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = None if self.pos_weight is None else self.pos_weight.to(outputs.device)
        losses = F.binary_cross_entropy_with_logits(outputs.float(), targets, pos_weight=weight, reduction="none")
        return losses.mean(dim=1)

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        return _defined(multilabel.formulas(outputs.float(), targets, self.names), targets, self.undefined(targets))

    def undefined(self, targets: torch.Tensor) -> dict[str, str]:
        return multilabel.undefined(targets, self.names)

    def describe(self) -> dict[str, Any]:
        return {"kind": "multi-label", "outputs": "logits; sigmoid gives the probability of each label"}


class BuiltRegression:
    """Regression whose targets are normalised by statistics of the training targets.

    Outputs are normalised values (N, num_targets); targets are float64 (N, num_targets) in the user's units.
    Normalised values are close to 1 in size, so float32 is enough for them. Values in the user's units must be float64:
    in float32 a time in seconds since 1970 has steps of 128 s.
    """

    monitor = "mae"
    monitor_mode: Mode = "min"

    def __init__(self, loss: str, names: tuple[str, ...], mean: Floats, std: Floats) -> None:
        """`loss` is "mse", "smooth_l1" or "l1".

        `mean` and `std` are those of the training targets, float64 (num_targets,).
        """
        self.names = names
        self.num_outputs = len(names)
        self.loss_name = loss
        self.mean, self.std = (torch.from_numpy(np.array(values, dtype=np.float64)) for values in (mean, std))

    @classmethod
    def of(cls, splits: Splits, loss: str) -> BuiltRegression:
        """Return the task, with the mean and the standard deviation of its training targets.

        Raises UserError if the targets cannot be normalised.
        """
        train = splits.train.targets.astype(np.float64)
        flat = [name for name, column in zip(splits.names, train.T, strict=True) if column.max() == column.min()]
        if flat:
            raise UserError(f"task: the training targets {flat} are all the same value; there is nothing to learn")
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = train.mean(axis=0), train.std(axis=0)
        _check_scale(splits, std)
        return cls(loss, splits.names, mean, std)

    def encode(self, targets: torch.Tensor) -> torch.Tensor:
        return targets

    def normalised(self, targets: torch.Tensor) -> torch.Tensor:
        """Return normalised targets, float32 (N, num_targets): standard deviations from the training targets' mean."""
        goals = (targets.double() - self.mean.to(targets.device)) / self.std.to(targets.device)
        return goals.float()

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = {"mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss}
        goals = self.normalised(targets).to(outputs.device)
        return losses[self.loss_name](outputs.float(), goals, reduction="none").mean(dim=1)

    def values(self, outputs: torch.Tensor) -> torch.Tensor:
        """Convert outputs, on the CPU, to the user's units, float64 (N, num_targets)."""
        return outputs.double() * self.std + self.mean

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        losses = self.loss(outputs, targets)
        formulas = regression.formulas(outputs.float(), targets, self.mean, self.std, losses, self.names)
        return _defined(formulas, targets, self.undefined(targets))

    def undefined(self, targets: torch.Tensor) -> dict[str, str]:
        return regression.undefined(targets, self.names)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "regression",
            "outputs": "normalised values; value = output * std + mean",
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }


def _defined(formulas: list[Formula], targets: torch.Tensor, undefined: dict[str, str]) -> dict[str, float]:
    """Return the metrics over all samples, without those that the targets leave undefined.

    A metric that is NaN because of the outputs stays.
    """
    return {name: value for name, value in plain_metrics(formulas, len(targets)).items() if name not in undefined}


def _check_scale(splits: Splits, std: Floats) -> None:
    """Raise UserError if targets are too large or too close to each other to be normalised in float64."""
    problems = []
    for index, name in enumerate(splits.names):
        columns = [split.targets[:, index].astype(np.float64) for split in (splits.train, splits.val)]
        largest = max(float(np.abs(column).max()) for column in columns)
        if not (largest <= LARGEST and np.isfinite(std[index])):
            problems.append(
                f"task: the targets {name!r} are as large as {largest:.4g}, too large for float64 arithmetic; give "
                "them in another unit or as logarithms"
            )
        elif not std[index] >= SMALLEST:
            problems.append(
                f"task: the targets {name!r} differ by so little (standard deviation {std[index]:.4g}) that float64 "
                "arithmetic cannot tell them apart; give them in another unit"
            )
    if problems:
        raise UserError(*problems)


def _one_for_each(field: str, values: tuple[float, ...] | str, splits: Splits) -> tuple[float, ...]:
    if isinstance(values, str) or len(values) != len(splits.names):
        raise UserError(
            f"{field}: {plural(len(values), 'value', spec='')} for {plural(len(splits.names), 'name', spec='')}: "
            f"{', '.join(splits.names)}"
        )
    if min(values) < 0 or max(values) <= 0:
        raise UserError(f"{field}={values}: values must be at least 0, and one above 0")
    return values


def _class_weights(setting: tuple[float, ...] | str, splits: Splits) -> torch.Tensor:
    counts = np.bincount(splits.train.targets, minlength=len(splits.names)).astype(np.float64)
    if setting == "balanced":
        weights = 1 / np.maximum(counts, 1)
    else:
        weights = np.array(_one_for_each("task.class_weights", setting, splits), dtype=np.float64)
    mean = (weights * counts).sum() / counts.sum()
    return torch.tensor(weights / mean, dtype=torch.float32)
