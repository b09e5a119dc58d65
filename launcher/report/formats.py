"""Names and numbers in the form in which people read them."""

from __future__ import annotations

import math
from typing import Any

from launcher.report.charts import number
from launcher.text import number as measured

SHARES = {"accuracy", "top5_accuracy", "exact_match"}
"""Metrics that are shares of the samples, shown in per cent."""
NAMES = {
    "auroc": "AUROC",
    "map": "mean average precision",
    "mae": "mean absolute error",
    "rmse": "root mean square error",
    "r2": "R²",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "top5_accuracy": "top-5 accuracy",
    "exact_match": "all labels right",
    "loss": "loss",
}


def metric_name(metric: str) -> str:
    """Return the name of a metric for people."""
    return NAMES.get(metric, metric.replace("_", " "))


def value_of(metric: str, value: float) -> str:
    """Format the value of a metric with its unit: "99.2 %"."""
    return f"{shown(metric, value)} %" if metric in SHARES else shown(metric, value)


def shown(metric: str, value: float) -> str:
    """Format the value of a metric without its unit."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}" if metric in SHARES else number(value) if abs(value) >= 10 else measured(value)


def unit_of(metric: str) -> str:
    """Return the unit of a metric: "%", or nothing."""
    return "%" if metric in SHARES else ""


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share in per cent without the sign, or as a dash if it is unknown."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}"


def part_name(part: Any) -> str:
    """Return the name of a recipe's part: "tf_efficientnet_lite0", "ImageFolder"."""
    if not isinstance(part, dict):
        return str(part)
    kind = str(part.get("type", "")).rpartition(".")[2]
    return str(part["name"]) if isinstance(part.get("name"), str) else kind
