"""What is best so far, and when a phase ends early."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Best:
    """A validation result worth keeping."""

    metric: str
    value: float
    step: int
    phase: str
    epoch: int


def is_better(value: float, best: Best | None, metric: str, mode: Literal["max", "min"]) -> bool:
    """Whether a result beats the best so far. Strictly: an equal later one does not, and nan never does."""
    if math.isnan(value):
        return False
    if best is None or best.metric != metric:
        return True
    return value > best.value if mode == "max" else value < best.value


def mode_of(metric: str, monitor: str, monitor_mode: Literal["max", "min"]) -> Literal["max", "min"]:
    """Direction of a metric that a phase monitors in place of the task's own."""
    if metric == monitor:
        return monitor_mode
    return "min" if metric.split("/")[0] in {"loss", "mae", "rmse"} else "max"
