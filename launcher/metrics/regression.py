"""Metrics of numbers, in the user's units.

They are computed from values that are normalised in float64 by the mean and the standard deviation of the training
targets. Whatever the unit, these are close to 1 in size, so neither a small spread, nor a large offset, nor a square
costs digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from launcher.metrics.formula import Formula, Values


def formulas(
    outputs: torch.Tensor,
    targets: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    losses: torch.Tensor,
    names: Sequence[str],
) -> list[Formula]:
    """Return the formulas of mean absolute error, root mean square error, loss, and R² (its mean over the targets).

    With several targets, there is also the mean absolute error of each. `outputs` are normalised (samples, targets),
    `targets` in the user's units, `mean` and `std` float64 (targets,), and `losses` (samples,).
    """
    goals = (targets.double() - mean) / std
    errors = outputs.double() - goals
    # The goals are centred on their own mean, not on that of the training targets, which is 0: squares around it could
    # be much larger than their variance.
    centred = goals - goals.mean(0)
    losses = losses.double()
    largest = std.max()

    def sums(weights: torch.Tensor) -> Values:
        total = weights.sum(1)
        absolute = weights @ errors.abs() / total[:, None] * std
        squared = weights @ errors.square()
        around_mean = weights @ centred.square() - (weights @ centred).square() / total[:, None]
        around_mean = around_mean.masked_fill(_constant(weights, targets), torch.nan)
        return {
            "mae": absolute.mean(1),
            "rmse": largest * ((squared * (std / largest).square()).mean(1) / total).sqrt(),
            "loss": weights @ losses / total,
            "r2": (1 - squared / around_mean).mean(1),
        } | ({f"mae/{name}": absolute[:, i] for i, name in enumerate(names)} if len(names) > 1 else {})

    return [Formula(sums, work=6 * len(names), width=3)]


def undefined(targets: torch.Tensor, names: Sequence[str]) -> dict[str, str]:
    """Return the metrics that are not defined for these targets, with the reasons."""
    if len(targets) < 2:
        return {"r2": "it has one image"}
    constant = [name for i, name in enumerate(names) if bool((targets[:, i] == targets[0, i]).all())]
    return {"r2": f"all its values of {', '.join(map(repr, constant))} are the same"} if constant else {}


def _constant(weights: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return whether all samples that count have the same value, bool (weightings, targets)."""
    counted = weights > 0
    columns = []
    for column in targets.double().T:
        highest = torch.where(counted, column, -torch.inf).amax(1)
        columns.append(highest == torch.where(counted, column, torch.inf).amin(1))
    return torch.stack(columns, dim=1)
