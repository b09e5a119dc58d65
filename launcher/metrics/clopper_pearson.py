"""The exact interval of a share: between which true shares what was counted is not unlikely."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def clopper_pearson(right: int, total: int, level: float) -> tuple[float, float]:
    """Return the interval of `right` of `total` (Clopper and Pearson, Biometrika 26, 1934).

    Below its low end so many right ones, or more, would be seen in (1 - level) / 2 of all cases at most; above its high
    end so many or fewer. It has a width for a perfect score, too: 16 of 16 are 79.4 % to 100 %.
    """
    tail = (1 - level) / 2
    low = 0.0 if right == 0 else _share_of_tail(right, total, tail)
    high = 1.0 if right == total else 1 - _share_of_tail(total - right, total, tail)
    return low, high


def _share_of_tail(count: int, total: int, tail: float) -> float:
    """The share of which `total` samples have `count` or more with a probability of `tail`."""
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
