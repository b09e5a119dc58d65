"""95 % intervals of metrics: exact for shares, and the percentile bootstrap over samples for all other metrics.

Accuracy, exact match and recalls are shares of samples that are right, so the binomial distribution gives their
intervals (`launcher.metrics.clopper_pearson`).

For the bootstrap, as many samples as a split has are drawn from it with replacement, many times, and each metric is
computed for each such draw; the interval holds the middle 95 % of the values (Efron and Tibshirani, An Introduction to
the Bootstrap, 1993, chapter 13). It shows how far a metric would move with other images of the same kind, not with
another training.

A draw is stored as the number of times that it has each sample. Metrics of the built-in tasks are formulas of these
numbers, computed for many draws at once (`formulas_of`); a formula is used only if it gives the same value as the task
itself. Other metrics, such as those of a user's own task, are computed by the task for one draw after the other, so
they get fewer draws.

If (nearly) all draws give the same value, as for an AUROC of 1, they say nothing about other images, so no interval is
defined.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from launcher.metrics.clopper_pearson import clopper_pearson
from launcher.metrics.formula import Formula
from launcher.metrics.task_formulas import MeasuredTask, formulas_of, shares_of

LEVEL = 0.95
RESAMPLES = 1000
FEWEST = 100
MOST_WORK = 2**28
"""Most numbers to process for one formula; one that needs more gets fewer draws, though not fewer than FEWEST."""
RESAMPLES_OF_A_TASK = 100
"""Draws for metrics that the task itself computes: a call of torchmetrics, for instance, takes 5 ms, however few
samples there are."""
AT_ONCE = 2**22
"""Most numbers in memory at a time for the draws."""
SAME = 1e-4
ROUNDING = 1e-12
"""Relative difference up to which values count as the same."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """The interval of a metric, and the number of draws from which it was computed."""

    low: float
    high: float
    resamples: int
    """Number of draws; 0 for a share, whose interval is exact."""


def intervals(
    task: MeasuredTask, outputs: torch.Tensor, targets: torch.Tensor, metrics: Mapping[str, float], seed: int
) -> dict[str, Interval]:
    """Return the interval of each of `metrics`, which are those over all samples, unless the draws define none."""
    by_name: dict[str, Interval] = {}
    for name, share in shares_of(task, outputs, targets).items():
        if name in metrics and _same(name, share.right / share.total, metrics[name]):
            by_name[name] = Interval(*clopper_pearson(share.right, share.total, LEVEL), resamples=0)
    once = torch.ones(1, len(targets), dtype=torch.float64)
    for formula in formulas_of(task, outputs, targets):
        right = {
            name
            for name, value in formula.of(once).items()
            if name in metrics and name not in by_name and _same(name, float(value), metrics[name])
        }
        if right:
            by_name |= _quantiles(_by_formula(formula, len(targets), seed), right)
    if missing := set(metrics) - set(by_name):
        by_name |= _quantiles(_by_task(task, outputs, targets, seed), missing)
    return {name: by_name[name] for name in metrics if name in by_name}


def _same(name: str, value: float, of_task: float) -> bool:
    """Return whether two computations gave the same metric.

    Errors in the user's units may be of any size, so they are compared without an absolute tolerance.
    """
    in_units = name.partition("/")[0] in ("mae", "rmse")
    return math.isclose(value, of_task, rel_tol=SAME, abs_tol=0.0 if in_units else SAME)


def _by_formula(formula: Formula, samples: int, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    count = min(RESAMPLES, max(FEWEST, MOST_WORK // (samples * formula.work)))
    parts: dict[str, list[npt.NDArray[np.float64]]] = {}
    for weights in draws(samples, count, seed, max(1, AT_ONCE // (samples * formula.width))):
        for name, values in formula.of(weights).items():
            parts.setdefault(name, []).append(values.numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def _by_task(
    task: MeasuredTask, outputs: torch.Tensor, targets: torch.Tensor, seed: int
) -> dict[str, npt.NDArray[np.float64]]:
    parts: dict[str, list[float]] = {}
    every = torch.arange(len(targets))
    for weights in draws(len(targets), RESAMPLES_OF_A_TASK, seed, 1):
        drawn = torch.repeat_interleave(every, weights[0].long())
        for name, value in task.metrics(outputs[drawn], targets[drawn]).items():
            parts.setdefault(name, []).append(value)
    return {name: np.asarray(values) for name, values in parts.items()}


def draws(samples: int, count: int, seed: int, at_once: int) -> Iterator[torch.Tensor]:
    """Yield `count` draws, at most `at_once` at a time, as float64 (draws, samples): the count of each sample in each.

    Draw i depends on `seed` and `samples` alone.
    """
    for start in range(0, count, at_once):
        rows = []
        for number in range(start, min(start + at_once, count)):
            generator = np.random.Generator(np.random.PCG64([seed, number]))
            rows.append(np.bincount(generator.integers(0, samples, samples), minlength=samples))
        yield torch.from_numpy(np.stack(rows)).double()


def _quantiles(values: Mapping[str, npt.NDArray[np.float64]], names: set[str]) -> dict[str, Interval]:
    by_name = {}
    for name in names & values.keys():
        defined = values[name][np.isfinite(values[name])]  # a draw may lack a class, whose recall is then undefined
        if not len(defined) or np.ptp(defined) <= ROUNDING * np.abs(defined).max():
            continue  # no draw defines it, or all give the same value
        low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        if high - low <= ROUNDING * np.abs(defined).max():
            continue  # nearly all give the same value
        by_name[name] = Interval(float(low), float(high), len(defined))
    return by_name


def to_json(intervals: Mapping[str, Interval], metrics: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Return the JSON of the intervals, with the methods by which they were computed and the metrics without one."""
    usual = max((interval.resamples for interval in intervals.values()), default=0)
    fewer = {name: interval.resamples for name, interval in intervals.items() if 0 < interval.resamples < usual}
    return {
        "level": LEVEL,
        "method": "percentile bootstrap over samples",
        "exact": [name for name, interval in intervals.items() if not interval.resamples],
        "exact_method": "Clopper-Pearson",
        "not_defined": [name for name in metrics if name not in intervals],
        "seed": seed,
        "resamples": usual,
        "fewer_resamples": fewer,
        "of": {name: [interval.low, interval.high] for name, interval in intervals.items()},
    }
