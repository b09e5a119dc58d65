"""The residuals of a regression: predictions against targets, the spread of the residuals, and the largest ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from launcher.report.charts import Chart, Frame, Line, number, padded
from launcher.report.facts import Facts
from launcher.report.page import Section
from launcher.report.samples import Samples
from launcher.text import plural

MOST_POINTS = 4000
BINS = 25
TARGETS = 12
"""The most targets that get charts of their own; the table has all targets."""


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for a run that is not an evaluated regression."""
    samples, residuals = facts.samples, facts.evaluation.get("residuals")
    if samples is None or samples.kind != "regression" or not residuals:
        return None
    charts: list[Chart] = []
    for column, name in enumerate(samples.classes[:TARGETS]):
        charts += [_scatter(samples, column, name), _spread(samples, column, name)]
    rows = [
        [name, *(number(value) for value in (r["mean"], r["standard_deviation"], *r["quantiles"].values()))]
        for name, r in residuals.items()
    ]
    quantiles = [f"{100 * float(share):g} %" for share in next(iter(residuals.values()))["quantiles"]]
    return Section(
        "residuals",
        "Residuals",
        {
            "charts": charts,
            "columns": ["mean", "std", *quantiles],
            "rows": rows,
            "largest": _largest(residuals, samples.folder),
            "more": max(0, len(samples.classes) - TARGETS),
        },
    )


def _chosen(samples: Samples, column: int) -> list[tuple[float, float]]:
    """Return the (target, prediction) points to draw: at most MOST_POINTS, the largest residuals among them."""
    target, predicted = samples.targets[:, column], samples.predictions[:, column]
    if len(target) > MOST_POINTS:
        largest = np.argsort(-np.abs(predicted - target), kind="stable")[: MOST_POINTS // 10]
        even = np.linspace(0, len(target) - 1, MOST_POINTS - len(largest)).round().astype(int)
        keep = np.union1d(largest, even)
        target, predicted = target[keep], predicted[keep]
    return list(zip(target.tolist(), predicted.tolist(), strict=True))


def _scatter(samples: Samples, column: int, name: str) -> Chart:
    points = _chosen(samples, column)
    low, high = padded([value for point in points for value in point])
    frame = Frame(x_low=low, x_high=high, y_low=low, y_high=high)
    off = float(np.abs(samples.predictions[:, column] - samples.targets[:, column]).mean())
    part = f" ({len(points):,} of {len(samples):,} shown)" if len(points) < len(samples) else ""
    return frame.chart(
        f"{name}: prediction",
        f"Predictions of {name} against targets{part}; they are off by {off:.4g} on average.",
        f"target{part}",
        lines=[Line("", "ideal", frame.path([(low, low), (high, high)]))],
        clouds=[("cloud", frame.cloud(points))],
    )


def _spread(samples: Samples, column: int, name: str) -> Chart:
    errors = samples.predictions[:, column] - samples.targets[:, column]
    low, high = padded(errors.tolist(), 0.02)
    counts, edges = np.histogram(errors, BINS, (low, high))
    frame = Frame(x_low=low, x_high=high, y_low=0.0, y_high=max(1.0, float(counts.max()) * 1.05))
    bars = []
    for total, begin, end in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if total:
            x, y = frame.x(begin), frame.y(total)
            title = f"{begin:.4g} to {end:.4g}: {plural(total, 'image')}"
            bars.append((x + 0.5, y, round(frame.x(end) - x - 1, 1), round(frame.y(0) - y, 1), "bar-val", title))
    lines = [Line("", "ideal", frame.path([(0.0, 0.0), (0.0, frame.y_high)]))] if low < 0 < high else []
    return frame.chart(
        f"{name}: residuals",
        f"Residuals of {name}: mean {errors.mean():.4g}, standard deviation {errors.std():.4g}.",
        "prediction − target",
        bars=bars,
        lines=lines,
    )


def _largest(residuals: dict[str, Any], folder: str) -> list[tuple[str, list[tuple[str, str]]]]:
    return [
        (name, [(str(row["name"]).removeprefix(folder), number(row["residual"])) for row in rows["largest"]])
        for name, rows in list(residuals.items())[:TARGETS]
    ]
