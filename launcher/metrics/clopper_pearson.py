"""Exact interval of a share: the true shares for which the observed count is not unlikely."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def clopper_pearson(right: int, total: int, level: float) -> tuple[float, float]:
    """Return the interval of the share `right` of `total` (Clopper and Pearson, Biometrika 26, 1934).

    With a true share below its low end, at least `right` samples would be right in at most (1 - level) / 2 of all
    cases; with one above its high end, at most `right` would be. A perfect score has an interval of some width, too: 16
    of 16 gives 79.4 % to 100 %.
    """
    tail = (1 - level) / 2
    low = 0.0 if right == 0 else _share_of_tail(right, total, tail)
    high = 1.0 if right == total else 1 - _share_of_tail(total - right, total, tail)
    return low, high


def _share_of_tail(count: int, total: int, tail: float) -> float:
    """Return the true share at which at least `count` of `total` samples are right with a probability of `tail`."""
    places = np.arange(count, total + 1, dtype=np.float64)
    factorials = np.array([math.lgamma(n + 1) for n in range(total + 1)])
    ways = factorials[total] - factorials[count:] - factorials[: total - count + 1][::-1]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _tail(ways, places, total, middle) < tail else (low, middle)
    return (low + high) / 2


def _tail(ways: npt.NDArray[np.float64], places: npt.NDArray[np.float64], total: int, share: float) -> float:
    return float(np.exp(ways + places * math.log(share) + (total - places) * math.log1p(-share)).sum())
