"""Several runs side by side: results, curves, settings that differ, and images on which they disagree."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from launcher.recipe.dotted import flat
from launcher.report.charts import Chart, Frame, Line, number, padded
from launcher.report.facts import Facts
from launcher.report.formats import metric_name, shown, unit_of
from launcher.report.page import Section
from launcher.report.sections.curves import epoch_ticks
from launcher.text import duration

LOOKS = 6
"""The number of colours for runs; further runs use them again."""
METRICS = 5
CLASSES = 30


def section(runs: Sequence[Facts], titles: Sequence[str]) -> Section:
    """Build the section; the first run decides by which metric the runs are compared."""
    metric = runs[0].monitor
    return Section(
        "side_by_side",
        "Comparison",
        {
            "table": _table(runs, titles),
            "ranges": _ranges(runs, titles, metric),
            "metric": metric_name(metric),
            "charts": [chart for chart in (_curves(runs, titles, metric), _curves(runs, titles, "loss")) if chart],
            "settings": _settings(runs),
            "titles": titles,
            "agreement": _agreement(runs, titles),
            "classes": _classes(runs),
        },
    )


def _table(runs: Sequence[Facts], titles: Sequence[str]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for run in runs for name in run.metrics if "/" not in name))
    first = runs[0].monitor
    names = [name for name in (first, *(n for n in names if n != first)) if name][:METRICS]
    # If all runs have the same value, none is better.
    best = {name: _best(runs, name) for name in names if len({run.metrics.get(name) for run in runs}) > 1}
    rows = []
    for place, (run, title) in enumerate(zip(runs, titles, strict=True)):
        cells = [
            {
                "text": shown(name, run.metrics[name]) if name in run.metrics else "–",
                "best": name in run.metrics and run.metrics[name] == best.get(name),
            }
            for name in names
        ]
        rows.append({"look": place % LOOKS, "title": title, "cells": cells, "time": duration(run.seconds)})
    columns = [f"{metric_name(name)}{' %' if unit_of(name) else ''}" for name in names]
    return {"columns": columns, "rows": rows}


def _best(runs: Sequence[Facts], name: str) -> float | None:
    values = [run.metrics[name] for run in runs if name in run.metrics]
    lower = name in ("loss", "mae", "rmse") or (name == runs[0].monitor and runs[0].mode == "min")
    return (min if lower else max)(values) if values else None


def _ranges(runs: Sequence[Facts], titles: Sequence[str], metric: str) -> dict[str, Any] | None:
    """Place each run's interval on one scale, in per cent of its length; return None if no run has an interval."""
    results = [(run.metrics.get(metric), run.interval(metric)) for run in runs]
    ends = [value for at, interval in results if at is not None and interval for value in interval]
    if not ends:
        return None
    low, high = padded(ends, 0.1)

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = []
    for index, (title, (at, interval)) in enumerate(zip(titles, results, strict=True)):
        if at is not None and interval:
            text = f"{shown(metric, at)} ({shown(metric, interval[0])} to {shown(metric, interval[1])})"
            places = {"low": place(interval[0]), "high": place(interval[1]), "at": place(at)}
            rows.append({"look": index % LOOKS, "title": title, "text": text, **places})
    unit = unit_of(metric)
    return {"rows": rows, "unit": unit, "low": shown(metric, low), "high": shown(metric, high)}


def _curves(runs: Sequence[Facts], titles: Sequence[str], metric: str) -> Chart | None:
    lines = []
    for run in runs:
        values = [(float(epoch.count), run.validated(epoch, metric)) for epoch in run.epochs]
        lines.append([(x, y) for x, y in values if y is not None])
    if not any(lines):
        return None
    low, high = padded([y for points in lines for _, y in points])
    frame = Frame(x_low=0.0, x_high=max(float(len(run.epochs)) for run in runs), y_low=low, y_high=high)
    return frame.chart(
        f"Validation {metric_name(metric)}",
        f"Validation {metric_name(metric)} of {len(runs)} runs over their epochs.",
        "epoch",
        x_ticks=epoch_ticks(frame),
        lines=[
            Line(title, f"run-{place % LOOKS}", frame.path(points))
            for place, (title, points) in enumerate(zip(titles, lines, strict=True))
        ],
    )


def _settings(runs: Sequence[Facts]) -> list[tuple[str, list[str]]]:
    """Return the fields of the recipes that are not the same in all runs."""
    tables = [flat(run.recipe) for run in runs]
    names = list(dict.fromkeys(name for table in tables for name in table))
    rows = []
    for name in names:
        values = [json.dumps(table[name], ensure_ascii=False) if name in table else "–" for table in tables]
        if len(set(values)) > 1:
            rows.append((name, values))
    return rows


def _agreement(runs: Sequence[Facts], titles: Sequence[str]) -> list[dict[str, Any]]:
    """Count the images on which the first run and each other run are right: both, one of them, or neither.

    Only classifications are compared, and only those that were evaluated on the same images.
    """
    first = runs[0].samples
    if first is None or first.kind != "classification":
        return []
    rows = []
    for run, title in zip(runs[1:], titles[1:], strict=True):
        other = run.samples
        if other is None or other.names != first.names or other.classes != first.classes:
            continue
        ours, theirs = first.targets == first.predictions, other.targets == other.predictions
        one, another = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
        equal = {"both": int((ours & theirs).sum()), "neither": int((~ours & ~theirs).sum())}
        rows.append({"title": title, "first": one, "other": another, "p": _sign_test(one, another), **equal})
    return rows


def _sign_test(one: int, other: int) -> str:
    """Return the p-value of McNemar's exact test: how likely so large a difference is if both are equally good."""
    total, less = one + other, min(one, other)
    if total == 0:
        return "1"
    if total > 1000:  # the normal approximation, with continuity correction
        z = max(0.0, abs(one - other) - 1) / math.sqrt(total)
        return number(math.erfc(z / math.sqrt(2)))
    tail = sum(math.comb(total, k) for k in range(less + 1)) / 2**total
    return number(min(1.0, 2 * tail))


def _classes(runs: Sequence[Facts]) -> list[dict[str, Any]]:
    """Return the F1 of each class in each run, the classes that differ most first."""
    tables = [_f1(run) for run in runs]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    rows = [{"name": name, "values": [table[name] for table in tables]} for name in names]
    return sorted(rows, key=lambda row: -_spread(row["values"]))[:CLASSES]


def _spread(values: Any) -> float:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if known else 0.0


def _f1(run: Facts) -> dict[str, float | None]:
    return {name: scores["f1"] for name, scores in run.scores.items()}
