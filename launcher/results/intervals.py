"""95 % intervals of metrics: the percentile bootstrap over samples.

The samples of a split are drawn again with replacement as often as there are, and each metric is computed of each such
draw; between which values 95 % of them lie is the interval (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13). It tells how far a metric would move with other images of the same kind, not with another training.

A draw is how often it has each sample. Metrics of the built-in tasks are formulas of these numbers, computed for all
draws at once (`formulas`); a formula is used only where it gives the value that the task itself gives. For all other
metrics, those of a user's own task for instance, the task is asked for each draw, and there are fewer of these.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from launcher.recipe.protocols import BuiltTask
from launcher.results.formulas import Formula, formulas_of

LEVEL = 0.95
RESAMPLES = 1000
FEWEST = 100
MOST_WORK = 2**28
"""Numbers to go through for one metric; a formula that needs more gets fewer draws, though not below FEWEST."""
RESAMPLES_OF_A_TASK = 100
"""Where the task itself is asked: torchmetrics takes 5 ms and more for a call, however few samples there are."""
AT_ONCE = 2**22
"""Numbers of draws in memory at a time."""
SAME = 1e-4


@dataclasses.dataclass(frozen=True)
class Interval:
    low: float
    high: float
    resamples: int


def intervals(
    task: BuiltTask, outputs: torch.Tensor, targets: torch.Tensor, metrics: Mapping[str, float], seed: int
) -> dict[str, Interval]:
    """The interval of each of `metrics`, which are those of all samples; one that no draw defines has none."""
    found: dict[str, Interval] = {}
    whole = torch.ones(1, len(targets), dtype=torch.float64)
    for formula in formulas_of(task, outputs, targets):
        right = {
            name
            for name, value in formula.of(whole).items()
            if name in metrics and math.isclose(float(value), metrics[name], rel_tol=SAME, abs_tol=SAME)
        }
        if right:
            found |= _quantiles(_by_formula(formula, len(targets), seed), right)
    if missing := set(metrics) - set(found):
        found |= _quantiles(_by_task(task, outputs, targets, seed), missing)
    return {name: found[name] for name in metrics if name in found}


def _by_formula(formula: Formula, samples: int, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    count = min(RESAMPLES, max(FEWEST, MOST_WORK // (samples * formula.work)))
    parts: dict[str, list[npt.NDArray[np.float64]]] = {}
    for weights in draws(samples, count, seed, max(1, AT_ONCE // (samples * formula.width))):
        for name, values in formula.of(weights).items():
            parts.setdefault(name, []).append(values.numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def _by_task(
    task: BuiltTask, outputs: torch.Tensor, targets: torch.Tensor, seed: int
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
        if len(defined):
            low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            found[name] = Interval(float(low), float(high), len(defined))
    return found


def to_json(found: Mapping[str, Interval], seed: int) -> dict[str, Any]:
    """Each interval, and how they were computed."""
    usual = max((interval.resamples for interval in found.values()), default=0)
    fewer = {name: interval.resamples for name, interval in found.items() if interval.resamples < usual}
    return {
        "level": LEVEL,
        "method": "percentile bootstrap over samples",
        "seed": seed,
        "resamples": usual,
        "fewer_resamples": fewer,
        "of": {name: [interval.low, interval.high] for name, interval in found.items()},
    }
