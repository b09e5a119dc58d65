"""The best validation result so far, and the improvement that a phase with patience waits for."""

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
    """The loss on the validation images, which decides between equal values; None if the task reports no loss."""

    def rank(self, mode: Mode) -> tuple[float, float]:
        """Return the sort key of this result among results of the same metric; the better result has the larger key."""
        return rank(self.value, self.loss, mode)


def rank(value: float | None, loss: float | None, mode: Mode) -> tuple[float, float]:
    """Return the sort key of a validation result: first the metric, then the loss, of which the lower is better.

    On few images a metric soon reaches its best value (1.0 of 16) and then says nothing more, while the loss still
    distinguishes epochs. Values that are not finite rank lowest.
    """
    signed = -math.inf if value is None or not math.isfinite(value) else value if mode == "max" else -value
    return signed, -math.inf if loss is None or not math.isfinite(loss) else -loss


def rank_of(metrics: Mapping[str, float | None], metric: str, mode: Mode) -> tuple[float, float]:
    """Return the sort key of one evaluation's metrics; for averaged weights the loss is "ema_loss"."""
    prefix = "ema_" if metric.startswith("ema_") else ""
    return rank(metrics.get(metric), metrics.get(f"{prefix}loss"), mode)


def is_better(new: Best, best: Best | None, mode: Mode) -> bool:
    """Return whether a result replaces the best so far.

    With the same metric and loss the later result does; a result that is not finite never does.
    """
    if not math.isfinite(new.value):
        return False
    return best is None or best.metric != new.metric or new.rank(mode) >= best.rank(mode)


def improves(new: Best, best: Best | None, mode: Mode) -> bool:
    """Return whether the metric itself is better, as `patience` requires; a lower loss alone is not enough."""
    if not math.isfinite(new.value):
        return False
    return best is None or best.metric != new.metric or new.rank(mode)[0] > best.rank(mode)[0]


def mode_of(metric: str, monitor: str, monitor_mode: Mode) -> Mode:
    """Return whether a higher or a lower value is better for a metric, which may differ from the task's own monitor."""
    if metric == monitor:
        return monitor_mode
    return "min" if metric.split("/")[0] in {"loss", "mae", "rmse"} else "max"
