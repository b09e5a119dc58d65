"""95 % intervals of metrics: exact ones of shares, and of all others the percentile bootstrap over samples.

Accuracy, exact match and recalls are shares of samples that are right, so the binomial distribution gives their
intervals (`launcher.metrics.clopper_pearson`).

The samples of a split are drawn again with replacement as often as there are, and each metric is computed of each such
draw; between which values 95 % of them lie is the interval (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13). It tells how far a metric would move with other images of the same kind, not with another training.

A draw is how often it has each sample. Metrics of the built-in tasks are formulas of these numbers, computed for all
draws at once (`formulas`); a formula is used only where it gives the value that the task itself gives. For all other
metrics, those of a user's own task for instance, the task is asked for each draw, and there are fewer of these.

Where (nearly) all draws give the same value, as of an AUROC of 1, they tell nothing of other images: no interval is
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
from launcher.metrics.formulas import MeasuredTask, formulas_of, shares_of

LEVEL = 0.95
RESAMPLES = 1000
FEWEST = 100
MOST_WORK = 2**28
"""Numbers to go through for one metric; a formula that needs more gets fewer draws, though not below FEWEST."""
RESAMPLES_OF_A_TASK = 100
"""Where the task itself is asked: a call of torchmetrics, for instance, takes 5 ms, however few samples there are."""
AT_ONCE = 2**22
"""Numbers of draws in memory at a time."""
SAME = 1e-4
ROUNDING = 1e-12
"""Values that differ by less, relative to their size, are the same."""


@dataclasses.dataclass(frozen=True)
class Interval:
    low: float
    high: float
    resamples: int
    """0: it is exact, of a share."""


def intervals(
    task: MeasuredTask, outputs: torch.Tensor, targets: torch.Tensor, metrics: Mapping[str, float], seed: int
) -> dict[str, Interval]:
    """The interval of each of `metrics`, which are those of all samples; one that the draws do not define has none."""
    found: dict[str, Interval] = {}
    for name, share in shares_of(task, outputs, targets).items():
        if name in metrics and _same(name, share.right / share.total, metrics[name]):
            found[name] = Interval(*clopper_pearson(share.right, share.total, LEVEL), resamples=0)
    whole = torch.ones(1, len(targets), dtype=torch.float64)
    for formula in formulas_of(task, outputs, targets):
        right = {
            name
            for name, value in formula.of(whole).items()
            if name in metrics and name not in found and _same(name, float(value), metrics[name])
        }
        if right:
            found |= _quantiles(_by_formula(formula, len(targets), seed), right)
    if missing := set(metrics) - set(found):
        found |= _quantiles(_by_task(task, outputs, targets, seed), missing)
    return {name: found[name] for name in metrics if name in found}


def _same(name: str, value: float, of_task: float) -> bool:
    """Whether two computations gave the same metric. Errors in the user's units may be of any size."""
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
    """`count` draws, in parts: float64 (draws, samples), how often each has each sample. Draw i is the same whatever
    the other arguments."""
    for start in range(0, count, at_once):
        rows = []
        for number in range(start, min(start + at_once, count)):
            generator = np.random.Generator(np.random.PCG64([seed, number]))
            rows.append(np.bincount(generator.integers(0, samples, samples), minlength=samples))
        yield torch.from_numpy(np.stack(rows)).double()


def _quantiles(values: Mapping[str, npt.NDArray[np.float64]], names: set[str]) -> dict[str, Interval]:
    found = {}
    for name in names & values.keys():
        defined = values[name][np.isfinite(values[name])]  # a draw may lack a class, whose recall is then undefined
        if not len(defined) or np.ptp(defined) <= ROUNDING * np.abs(defined).max():
            continue  # no draw defines it, or all give the same
        low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        if high - low <= ROUNDING * np.abs(defined).max():
            continue  # nearly all give the same
        found[name] = Interval(float(low), float(high), len(defined))
    return found


def to_json(found: Mapping[str, Interval], metrics: Mapping[str, float], seed: int) -> dict[str, Any]:
    """Each interval, how they were computed, and the metrics that have none."""
    usual = max((interval.resamples for interval in found.values()), default=0)
    fewer = {name: interval.resamples for name, interval in found.items() if 0 < interval.resamples < usual}
    return {
        "level": LEVEL,
        "method": "percentile bootstrap over samples",
        "exact": [name for name, interval in found.items() if not interval.resamples],
        "exact_method": "Clopper-Pearson",
        "not_defined": [name for name in metrics if name not in found],
        "seed": seed,
        "resamples": usual,
        "fewer_resamples": fewer,
        "of": {name: [interval.low, interval.high] for name, interval in found.items()},
    }
