"""Suggestions of a learning rate range test: pure functions of its curve.

`steepest`, `valley` and `slide` are those of fastai's `lr_find` (https://docs.fast.ai/callback.schedule.html; steep,
valley and slide there), on losses smoothed as there, without the first tenth of the steps and the last five.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from launcher.tuning.lr_finder.trace import Trace

Curve = npt.NDArray[np.float64]

LEFT_OUT_AT_END = 5
SLIDE_WIDTH = 15
SLIDE_THRESHOLD = 0.005
"""Threshold in units of the loss."""
FALLS = 0.05
"""Share of itself by which a smoothed loss must fall to suggest a rate; noise alone causes smaller falls."""
RISES = 0.25
"""Share of the lowest loss by which the loss has risen where a rate is too high."""
BELOW = 3.0
"""Smallest ratio of the rate of the lowest loss, or of the rise if nothing falls, to a recommended rate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suggestions:
    """Suggested values of `optim.lr`, each None if the curve does not suggest one."""

    steepest: float | None = None
    valley: float | None = None
    slide: float | None = None
    recommended: float | None = None
    why: str
    """Description of how the rate was chosen, or why none is recommended and what to do."""
    is_bound: bool = False
    """True if the loss still fell at the highest rate: a higher `--to` may give a higher rate."""


def suggest(trace: Trace) -> Suggestions:
    """Return the suggestions of a trace.

    The recommended rate is the median of the three (without `slide` the lower of the two), so that no single one
    misleads, and at most a third of the rate of the lowest loss. If the loss does not fall, because the head fits
    already, it is a third of the rate at which the loss rises.
    """
    begin, end = trace.steps // 10, len(trace.lrs) - LEFT_OUT_AT_END
    lrs, losses = np.array(trace.lrs)[begin:end], np.array(trace.smoothed)[begin:end]
    if len(lrs) < 3:
        return Suggestions(why=f"the loss diverges at once ({_at(trace)}); give a lower --from, or more --steps")
    lowest = int(losses.argmin())
    scale = max(abs(float(losses[0])), trace.least_loss)
    if losses[0] - losses[lowest] < FALLS * scale:
        return _without_fall(trace, lrs, losses)
    rates = {"steepest": steepest(lrs, losses), "valley": valley(lrs, losses), "slide": slide(lrs, losses)}
    inside = sorted(value for value in rates.values() if value is not None)
    middle = inside[(len(inside) - 1) // 2]
    why = "the median of the three" if len(inside) == 3 else "the lower of the two"
    bound = float(lrs[lowest]) / BELOW
    return Suggestions(
        **rates,
        recommended=min(middle, bound),
        why=why if middle <= bound else "a third of the rate of the lowest loss",
        is_bound=not trace.diverged and lowest == len(lrs) - 1,
    )


def _without_fall(trace: Trace, lrs: Curve, losses: Curve) -> Suggestions:
    lowest = float(losses.min())
    limit = lowest + RISES * max(abs(lowest), trace.least_loss)
    calm = np.flatnonzero(losses <= limit)
    if calm[-1] == len(losses) - 1 and not trace.diverged:
        return Suggestions(
            why=f"the loss neither falls nor rises up to {lrs[-1]:.2g}; give a higher --to, or --steps if it is noisy"
        )
    if calm[-1] < len(losses) // 10:
        return Suggestions(why=f"the loss rises from the start ({lrs[0]:.2g}); give a lower --from")
    return Suggestions(
        recommended=float(lrs[calm[-1]]) / BELOW,
        why=f"the loss does not fall from where it starts; a third of the rate at which it rises ({lrs[calm[-1]]:.2g})",
    )


def _at(trace: Trace) -> str:
    return f"{trace.lrs[-1]:.2g}" if trace.lrs else "in the first step"


def steepest(lrs: Curve, losses: Curve) -> float:
    """Return the rate at the beginning of the step in which the loss falls fastest over the logarithm of the rate.

    `lrs` and `losses` are (N,), N >= 2.
    """
    slopes = np.diff(losses) / np.diff(np.log(lrs))
    return float(lrs[int(slopes.argmin())])


def valley(lrs: Curve, losses: Curve) -> float:
    """Return the rate half-way through the longest falling subsequence of losses.

    It lies a third plus a sixth of the subsequence's length beyond the place where that would begin without gaps. `lrs`
    and `losses` are (N,), N >= 1.
    """
    length, end = _longest_fall(losses)
    first = end - length
    third = (end - first) / 3
    return float(lrs[max(0, first + int(third) + int(third / 2))])


def _longest_fall(losses: Sequence[float] | Curve) -> tuple[int, int]:
    """Return the length of the longest strictly falling subsequence, and the index where the first one so long ends."""
    # Patience sorting: tails[k] is the highest last loss, negated, of a falling subsequence of length k + 1.
    tails: list[float] = []
    longest, end = 1, 0
    for index, loss in enumerate(losses):
        place = bisect_left(tails, -float(loss))
        tails[place : place + 1] = [-float(loss)]
        if place + 1 > longest:
            longest, end = place + 1, index
    return longest if end else 0, end


def slide(lrs: Curve, losses: Curve) -> float | None:
    """Return the rate at which a window sliding down from the highest rate comes to rest, or None with too few steps.

    The window has 15 steps, and slides as long as the loss's slopes at its two ends differ; the rate is that of its
    left end.
    """
    count = len(lrs)
    if count <= SLIDE_WIDTH:
        return None
    slopes = np.gradient(losses)
    right = count - 1
    rate = float(lrs[right - SLIDE_WIDTH])
    while right >= SLIDE_WIDTH and abs(slopes[right] - slopes[right - SLIDE_WIDTH]) > SLIDE_THRESHOLD:
        rate = float(lrs[right - SLIDE_WIDTH])
        right -= 1
    return rate


def rounded(lr: float) -> str:
    """Return a rate with two digits, as it is written in an override: "3.4e-3"."""
    digits, _, exponent = f"{lr:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}" if math.isfinite(lr) else str(lr)
