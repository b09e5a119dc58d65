"""Ranking of samples by a score, for the metrics that depend on their order alone."""

from __future__ import annotations

import torch


class Ranking:
    """The samples from the highest score to the lowest, those with equal scores in one group."""

    def __init__(self, scores: torch.Tensor, positive: torch.Tensor) -> None:
        """`scores` and `positive` (bool) are (samples,)."""
        self._comparable = not bool(scores.isnan().any())
        ordered, order = scores.sort(descending=True, stable=True)
        _, groups = torch.unique_consecutive(ordered, return_inverse=True)
        # The types are small because each class has a ranking: 1,000 classes and 50,000 samples take 250 MB, not 800.
        self._order = order.to(torch.int32)
        self._groups = None if groups[-1] + 1 == len(scores) else groups.to(torch.int32)
        self._positive = positive[order]

    def auroc(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the share of pairs of a positive and a negative sample in which the positive one ranks higher.

        Ties count half. `weights` are float64 (weightings, samples). The result is NaN where they leave no pair, or if
        a score is NaN.
        """
        positive, negative = self._weighted(weights)
        below = negative.sum(1, keepdim=True) - negative.cumsum(1) + negative / 2
        return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))

    def average_precision(self, weights: torch.Tensor) -> torch.Tensor:
        """Return the mean, over the positive samples, of the precision down to each; NaN like `auroc`."""
        positive, negative = self._weighted(weights)
        above = positive.cumsum(1)
        precision = torch.nan_to_num(above / (above + negative.cumsum(1)))
        return (positive * precision).sum(1) / positive.sum(1)

    def _weighted(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._comparable:
            nothing = torch.zeros(len(weights), 1, dtype=torch.float64)
            return nothing, nothing
        ordered = weights[:, self._order.long()]
        positive = ordered * self._positive
        negative = ordered - positive
        if self._groups is None:
            return positive, negative
        empty = torch.zeros(len(weights), int(self._groups[-1]) + 1, dtype=torch.float64)
        return empty.index_add(1, self._groups, positive), empty.index_add(1, self._groups, negative)
