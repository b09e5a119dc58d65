"""Metrics of several labels per sample. Outputs are logits (samples, labels), targets 0 or 1 likewise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from launcher.metrics.formula import Formula, Share, Values
from launcher.metrics.ranking import Ranking


def formulas(outputs: torch.Tensor, targets: torch.Tensor, names: Sequence[str]) -> list[Formula]:
    """Return the formulas of macro and micro F1, exact match, recalls, loss, mean average precision, and AUROC.

    F1, exact match and recalls are those of the labels with a probability above 0.5. Mean average precision and AUROC
    are means over the labels that have both positive and negative samples.
    """
    truth, predicted = _truth(targets).double(), _predicted(outputs).double()
    exact = (predicted == truth).all(1).double()
    losses = F.binary_cross_entropy_with_logits(outputs.double(), targets.double(), reduction="none").mean(1)

    def sums(weights: torch.Tensor) -> Values:
        positives, claimed, right = weights @ truth, weights @ predicted, weights @ (truth * predicted)
        total, recalls = weights.sum(1), right / positives
        return {
            "macro_f1": torch.nan_to_num(2 * right / (positives + claimed)).mean(1),
            "micro_f1": 2 * right.sum(1) / (positives + claimed).sum(1),
            "exact_match": weights @ exact / total,
            "loss": weights @ losses / total,
        } | {f"recall/{name}": recalls[:, i] for i, name in enumerate(names)}

    # Logits are ranked, not probabilities: equal logits may differ after sigmoid, whose rounding depends on the place
    # in a vector register.
    ranked = [Ranking(outputs[:, i], truth[:, i] > 0) for i in _with_both(targets)]

    def ranks(weights: torch.Tensor) -> Values:
        return {
            "map": torch.stack([ranking.average_precision(weights) for ranking in ranked], dim=1).nanmean(1),
            "auroc": torch.stack([ranking.auroc(weights) for ranking in ranked], dim=1).nanmean(1),
        }

    by_rank = [Formula(ranks, work=8 * len(names), width=4)] if ranked else []
    return [Formula(sums, work=3 * len(names), width=2), *by_rank]


def shares(outputs: torch.Tensor, targets: torch.Tensor, names: Sequence[str]) -> dict[str, Share]:
    """Return the metrics that are shares of all samples or of the samples that have a label."""
    truth, predicted = _truth(targets), _predicted(outputs)
    supports, right = truth.sum(0).tolist(), (truth & predicted).sum(0).tolist()
    shares = {"exact_match": Share(int((truth == predicted).all(1).sum()), len(truth))}
    return shares | {f"recall/{name}": Share(right[i], supports[i]) for i, name in enumerate(names) if supports[i]}


def undefined(targets: torch.Tensor, names: Sequence[str]) -> dict[str, str]:
    """Return the metrics that are not defined for these targets, with the reasons."""
    counts = _truth(targets).sum(0).tolist()
    reasons = {f"recall/{name}": f"no image of it has {name!r}" for name, n in zip(names, counts, strict=True) if not n}
    if not _with_both(targets):
        reasons |= dict.fromkeys(("map", "auroc"), "no label is there on some of its images and absent on others")
    return reasons


def _truth(targets: torch.Tensor) -> torch.Tensor:
    return targets > 0.5


def _predicted(outputs: torch.Tensor) -> torch.Tensor:
    """Return which labels have a probability above 0.5.

    The sign of the logits is not enough, because sigmoid rounds the smallest ones to 0.5.
    """
    return outputs.float().sigmoid() > 0.5


def _with_both(targets: torch.Tensor) -> list[int]:
    """Return the indices of the labels that some samples have and others lack; samples cannot be ranked by the rest."""
    truth = _truth(targets)
    return [i for i in range(truth.shape[1]) if 0 < int(truth[:, i].sum()) < len(truth)]
