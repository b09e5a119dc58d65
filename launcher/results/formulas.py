"""Metrics of the built-in tasks as functions of how often each sample counts, for many such weightings at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F

from launcher.recipe.protocols import BuiltTask

Values = dict[str, torch.Tensor]
"""By metric, float64 (weightings,); NaN where a metric is not defined."""


@dataclasses.dataclass(frozen=True)
class Formula:
    """Metrics that are computed together."""

    of: Callable[[torch.Tensor], Values]
    """From weights, float64 (weightings, samples)."""
    work: int
    """How many numbers a weighting goes through, for each sample."""
    width: int = 1
    """How many of them are in memory together."""


def kind_of(task: BuiltTask) -> str:
    """What the outputs are, as `final/model.json` says it: "classification", "multi-label", "regression", or other."""
    return str(task.describe().get("kind"))


def formulas_of(task: BuiltTask, outputs: torch.Tensor, targets: torch.Tensor) -> list[Formula]:
    """None for a task whose outputs are of no known kind."""
    kind, names = kind_of(task), tuple(getattr(task, "names", ()))
    outputs = outputs.float()
    if kind == "classification" and targets.ndim == 1 and outputs.shape[1] == len(names):
        return _of_classes(outputs, targets, names)
    if kind == "multi-label" and outputs.shape == targets.shape and outputs.shape[1] == len(names):
        return _of_labels(outputs, targets, names)
    if kind == "regression" and outputs.shape == targets.shape and hasattr(task, "values"):
        return _of_values(task.values(outputs).double(), targets.double(), task.loss(outputs, targets).double(), names)
    return []


def _of_classes(outputs: torch.Tensor, targets: torch.Tensor, names: tuple[str, ...]) -> list[Formula]:
    count = len(names)
    predicted = outputs.argmax(1)
    right = (predicted == targets).double()
    within_5 = (outputs.topk(min(5, count), dim=1).indices == targets[:, None]).any(1).double()
    losses = F.cross_entropy(outputs, targets, reduction="none").double()

    def sums(weights: torch.Tensor) -> Values:
        of_class, of_prediction, of_right = (
            torch.zeros(len(weights), count, dtype=torch.float64).index_add_(1, to, weighted)
            for to, weighted in ((targets, weights), (predicted, weights), (targets, weights * right))
        )
        total = weights.sum(1)
        f1 = 2 * of_right / (of_class + of_prediction)  # NaN for a class that is nowhere
        recalls = of_right / of_class
        return {
            "accuracy": weights @ right / total,
            "top5_accuracy": weights @ within_5 / total,
            "loss": weights @ losses / total,
            "macro_f1": f1.nanmean(1),
        } | {f"recall/{name}": recalls[:, i] for i, name in enumerate(names)}

    ranked = [_Ranking(scores, targets == i) for i, scores in enumerate(outputs.softmax(1).T)]

    def ranks(weights: torch.Tensor) -> Values:
        return {"auroc": torch.stack([ranking.auroc(weights) for ranking in ranked], dim=1).nanmean(1)}

    return [Formula(sums, work=4, width=4), Formula(ranks, work=4 * count, width=4)]


def _of_labels(outputs: torch.Tensor, targets: torch.Tensor, names: tuple[str, ...]) -> list[Formula]:
    truth, probabilities = targets.round().double(), outputs.sigmoid()
    predicted = (probabilities > 0.5).double()
    exact = (predicted == truth).all(1).double()
    losses = F.binary_cross_entropy_with_logits(outputs, targets.float(), reduction="none").mean(1).double()

    def sums(weights: torch.Tensor) -> Values:
        positives, claimed, right = weights @ truth, weights @ predicted, weights @ (truth * predicted)
        total, recalls = weights.sum(1), right / positives
        return {
            "macro_f1": torch.nan_to_num(2 * right / (positives + claimed)).mean(1),
            "micro_f1": 2 * right.sum(1) / (positives + claimed).sum(1),
            "exact_match": weights @ exact / total,
            "loss": weights @ losses / total,
        } | {f"recall/{name}": recalls[:, i] for i, name in enumerate(names)}

    # Those that have both: the others are not ranked by the task, either.
    both = [i for i in range(len(names)) if 0 < truth[:, i].sum() < len(truth)]
    ranked = [_Ranking(probabilities[:, i], truth[:, i] > 0) for i in both]

    def ranks(weights: torch.Tensor) -> Values:
        return {
            "auroc": torch.stack([ranking.auroc(weights) for ranking in ranked], dim=1).nanmean(1),
            "map": torch.stack([ranking.average_precision(weights) for ranking in ranked], dim=1).nanmean(1),
        }

    found = [Formula(sums, work=3 * len(names), width=2)]
    return found + ([Formula(ranks, work=8 * len(names), width=4)] if ranked else [])


def _of_values(
    values: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor, names: tuple[str, ...]
) -> list[Formula]:
    errors = values - targets
    # Not the targets themselves, of which the squares could be much larger than their variance.
    centred = targets - targets.mean(0)

    def sums(weights: torch.Tensor) -> Values:
        total = weights.sum(1)
        absolute = weights @ errors.abs() / total[:, None]
        squared = weights @ errors.square()
        around_mean = weights @ centred.square() - (weights @ centred).square() / total[:, None]
        return {
            "mae": absolute.mean(1),
            "rmse": (squared.mean(1) / total).sqrt(),
            "loss": weights @ losses / total,
            "r2": (1 - squared / around_mean).mean(1),
        } | {f"mae/{name}": absolute[:, i] for i, name in enumerate(names)}

    return [Formula(sums, work=4 * len(names))]


class _Ranking:
    """The samples from the highest score to the lowest, those with equal scores in one group."""

    def __init__(self, scores: torch.Tensor, positive: torch.Tensor) -> None:
        ordered, order = scores.sort(descending=True, stable=True)
        _, groups = torch.unique_consecutive(ordered, return_inverse=True)
        # Small types, for there is one of these for each class: 250 MB for 1,000 classes and 50,000 samples, not 800.
        self._order = order.to(torch.int32)
        self._groups = None if groups[-1] + 1 == len(scores) else groups.to(torch.int32)
        self._positive = positive[order]

    def auroc(self, weights: torch.Tensor) -> torch.Tensor:
        """The share of pairs of a positive and a negative sample in which the positive one is above; ties half."""
        positive, negative = self._weighted(weights)
        below = negative.sum(1, keepdim=True) - negative.cumsum(1) + negative / 2
        return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))

    def average_precision(self, weights: torch.Tensor) -> torch.Tensor:
        positive, negative = self._weighted(weights)
        above = positive.cumsum(1)
        precision = torch.nan_to_num(above / (above + negative.cumsum(1)))
        return (positive * precision).sum(1) / positive.sum(1)

    def _weighted(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ordered = weights[:, self._order.long()]
        positive = ordered * self._positive
        negative = ordered - positive
        if self._groups is None:
            return positive, negative
        empty = torch.zeros(len(weights), int(self._groups[-1]) + 1, dtype=torch.float64)
        return empty.index_add(1, self._groups, positive), empty.index_add(1, self._groups, negative)
