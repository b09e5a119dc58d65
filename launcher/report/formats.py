"""Names and numbers as people read them."""

from __future__ import annotations

import math
from typing import Any

from launcher.report.charts import number
from launcher.text import number as measured

SHARES = {"accuracy", "top5_accuracy", "exact_match"}
"""Metrics that are shares of the samples: shown in per cent."""
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
    return NAMES.get(metric, metric.replace("_", " "))


def value_of(metric: str, value: float) -> str:
    """With its unit: "99.2 %"."""
    return f"{shown(metric, value)} %" if metric in SHARES else shown(metric, value)


def shown(metric: str, value: float) -> str:
    """Without its unit."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f}" if metric in SHARES else number(value) if abs(value) >= 10 else measured(value)


def unit_of(metric: str) -> str:
    return "%" if metric in SHARES else ""


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}"


def part_name(part: Any) -> str:
    """What a part of a recipe is called: "tf_efficientnet_lite0", "ImageFolder"."""
    if not isinstance(part, dict):
        return str(part)
    kind = str(part.get("type", "")).rpartition(".")[2]
    return str(part["name"]) if isinstance(part.get("name"), str) else kind
