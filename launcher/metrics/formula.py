"""Metrics as functions of the weights of the samples, for many such weightings at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

Values = dict[str, torch.Tensor]
"""Values by metric, float64 (weightings,); NaN where a metric is not defined."""


@dataclasses.dataclass(frozen=True)
class Formula:
    """Metrics that are computed together."""

    of: Callable[[torch.Tensor], Values]
    """Function of weights, float64 (weightings, samples): how often each sample counts."""
    work: int
    """Numbers to process per sample and weighting."""
    width: int = 1
    """Numbers in memory at a time per sample and weighting."""


@dataclasses.dataclass(frozen=True)
class Share:
    """A metric that is a share of samples: `right` of `total`."""

    right: int
    total: int


def plain_metrics(formulas: Iterable[Formula], samples: int) -> dict[str, float]:
    """Return the metrics with each sample counted once; NaN where a metric is not defined."""
    once = torch.ones(1, samples, dtype=torch.float64)
    return {name: float(value) for formula in formulas for name, value in formula.of(once).items()}
