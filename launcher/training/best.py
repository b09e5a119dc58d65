"""What is best so far, and when a phase ends early."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

Mode = Literal["max", "min"]


@dataclasses.dataclass(frozen=True)
class Best:
    """A validation result worth keeping."""

    metric: str
    value: float
    step: int
    phase: str
    epoch: int
    loss: float | None = None
    """On the validation images; decides between equal values. None where the task reports none."""

    def rank(self, mode: Mode) -> tuple[float, float]:
        """Return what orders results of one metric; the better of two is the larger."""
        return rank(self.value, self.loss, mode)


def rank(value: float | None, loss: float | None, mode: Mode) -> tuple[float, float]:
    """Return what orders validation results: by the metric, and where that is equal by the loss, the lower first.

    A metric soon reaches its best value on few images (1.0 of 16) and says nothing more, while the loss still tells
    epochs apart. What is not finite is the worst.
    """
    signed = -math.inf if value is None or not math.isfinite(value) else value if mode == "max" else -value
    return signed, -math.inf if loss is None or not math.isfinite(loss) else -loss


def rank_of(metrics: Mapping[str, float | None], metric: str, mode: Mode) -> tuple[float, float]:
    """Return the rank of one evaluation's metrics; of averaged weights the loss is "ema_loss"."""
    prefix = "ema_" if metric.startswith("ema_") else ""
    return rank(metrics.get(metric), metrics.get(f"{prefix}loss"), mode)


def is_better(new: Best, best: Best | None, mode: Mode) -> bool:
    """Return whether a result takes the place of the best so far: with the same metric and loss the later one does, one
    that is not finite never does."""
    if not math.isfinite(new.value):
        return False
    return best is None or best.metric != new.metric or new.rank(mode) >= best.rank(mode)


def improves(new: Best, best: Best | None, mode: Mode) -> bool:
    """Return whether the metric itself is better, which is what `patience` waits for; a lower loss is not enough."""
    if not math.isfinite(new.value):
        return False
    return best is None or best.metric != new.metric or new.rank(mode)[0] > best.rank(mode)[0]


def mode_of(metric: str, monitor: str, monitor_mode: Mode) -> Mode:
    """Return the direction of a metric that a phase monitors in place of the task's own."""
    if metric == monitor:
        return monitor_mode
    return "min" if metric.split("/")[0] in {"loss", "mae", "rmse"} else "max"
