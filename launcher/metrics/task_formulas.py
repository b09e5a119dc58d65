"""Formulas of a task's metrics, by the kind of its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from launcher.metrics import classification, multilabel, regression
from launcher.metrics.formula import Formula, Share


class MeasuredTask(Protocol):
    """The methods of a built task (`launcher.recipe.protocols.BuiltTask`) that metrics and their intervals need."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor: ...

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]: ...

    def describe(self) -> dict[str, Any]: ...


@runtime_checkable
class NamesOutputs(Protocol):
    """A built task that knows the names of its classes, labels or targets, in the order of its outputs."""

    names: Sequence[str]


@runtime_checkable
class NormalisesByStatistics(Protocol):
    """A built task whose outputs are numbers that are normalised by these statistics of the training targets."""

    mean: torch.Tensor | None
    std: torch.Tensor | None


def kind_of(task: MeasuredTask) -> str:
    """Return the kind of the outputs in `final/model.json`: "classification", "multi-label", "regression", or other."""
    return str(task.describe().get("kind"))


def formulas_of(task: MeasuredTask, outputs: torch.Tensor, targets: torch.Tensor) -> list[Formula]:
    """Return the formulas of a task's metrics; an empty list if its outputs are of no known kind."""
    kind, names = kind_of(task), _names_of(task)
    outputs = outputs.float()
    if _are_classes(kind, names, outputs, targets):
        return classification.formulas(outputs, targets, names, keep=True)
    if _are_labels(kind, names, outputs, targets):
        return multilabel.formulas(outputs, targets, names)
    if kind == "regression" and outputs.shape == targets.shape and isinstance(task, NormalisesByStatistics):
        mean, std = task.mean, task.std
        if mean is not None and std is not None:
            losses = task.loss(outputs, targets)
            return regression.formulas(outputs, targets, mean.double(), std.double(), losses, names)
    return []


def shares_of(task: MeasuredTask, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, Share]:
    """Return the metrics that are shares of samples; an empty dict if a task's outputs are of no known kind."""
    kind, names = kind_of(task), _names_of(task)
    outputs = outputs.float()
    if _are_classes(kind, names, outputs, targets):
        return classification.shares(outputs, targets, names)
    if _are_labels(kind, names, outputs, targets):
        return multilabel.shares(outputs, targets, names)
    return {}


def _names_of(task: MeasuredTask) -> tuple[str, ...]:
    return tuple(task.names) if isinstance(task, NamesOutputs) else ()


def _are_classes(kind: str, names: tuple[str, ...], outputs: torch.Tensor, targets: torch.Tensor) -> bool:
    return kind == "classification" and targets.ndim == 1 and outputs.shape[1] == len(names)


def _are_labels(kind: str, names: tuple[str, ...], outputs: torch.Tensor, targets: torch.Tensor) -> bool:
    return kind == "multi-label" and outputs.shape == targets.shape and outputs.shape[1] == len(names)
