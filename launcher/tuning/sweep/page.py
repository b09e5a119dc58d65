"""Report of a sweep, sweep.html: one file that needs no others."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from launcher.report.charts import Chart, Dot, Frame, Line, number, padded
from launcher.report.formats import metric_name, shown, unit_of
from launcher.report.page import RunPage, Section, page
from launcher.text import number as measured
from launcher.text import plural
from launcher.tuning.sweep.plan import SweepPlan
from launcher.tuning.sweep.space import Choices, Dimension
from launcher.tuning.sweep.study import best_of, ranked
from launcher.tuning.sweep.table import Table

FILE = "sweep.html"
MOST_LINES = 300
"""Largest number of trials in one chart; the better ones are shown."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """Axis of the parallel coordinates."""

    x: float
    name: str
    labels: tuple[tuple[float, str], ...]
    """Labels as (y, text)."""


def page_of(
    plan: SweepPlan,
    table: Table,
    trials: Sequence[FrozenTrial],
    importances: Mapping[str, float],
    command: str,
    images: int,
) -> str:
    """Return the HTML of the report.

    `trials` are those of the search, measured on `images` validation images.
    """
    title = f"Sweep of {plan.loaded.path.stem}"
    metric = {"name": metric_name(plan.metric), "unit": unit_of(plan.metric)}
    best = next((row for row in table.rows if row.state == "finished"), None)
    counts = list(Counter(row.state for row in table.rows).items())
    sections = [
        Section(
            "sweep_summary",
            title,
            {
                "metric": metric,
                "best": best,
                "shown": functools.partial(shown, plan.metric),
                "counts": counts,
                "command": command,
                "spread": table.spread,
                "certainty": table.certainty(images),
                "direction": "the higher the better" if plan.mode == "max" else "the lower the better",
            },
        )
    ]
    charts = [chart for chart in (_history(plan, trials), _curves(plan, trials)) if chart is not None]
    if charts:
        values = {"charts": charts, "importances": [(name, round(100 * share)) for name, share in importances.items()]}
        sections.append(Section("sweep_charts", "Course", values))
    if len(plan.space.dimensions) > 1 and (coordinates := _coordinates(plan, trials)) is not None:
        sections.append(Section("sweep_coordinates", "Settings and results", coordinates))
    sections.append(
        Section(
            "sweep_trials",
            "Trials" if table.rows else "Runs",
            {"columns": table.columns, "rows": [[_cell(cell) for cell in row] for row in table.cells()]},
        )
    )
    return page(title, [RunPage(title, sections)])


def _cell(cell: Any) -> str:
    if cell is None:
        return "–"
    return number(cell) if isinstance(cell, float) else str(cell)


def _known(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.value is not None and trial.state != TrialState.FAIL]


def _history(plan: SweepPlan, trials: Sequence[FrozenTrial]) -> Chart | None:
    """Chart the value of each trial, and the best so far."""
    known = _known(trials)
    if not known:
        return None
    low, high = padded([trial.value or 0.0 for trial in known])
    frame = Frame(x_low=0.0, x_high=max(1.0, float(len(trials) - 1)), y_low=low, y_high=high)
    best_so_far: list[tuple[float, float]] = []
    better = max if plan.mode == "max" else min
    for trial in known:
        if trial.state == TrialState.COMPLETE:
            value = trial.value or 0.0
            reached = better(value, best_so_far[-1][1]) if best_so_far else value
            if best_so_far:
                best_so_far.append((float(trial.number), best_so_far[-1][1]))
            best_so_far.append((float(trial.number), reached))
    lines = [
        Line(
            name,
            look,
            "",
            tuple(
                Dot(
                    frame.x(trial.number), frame.y(trial.value or 0.0), f"trial {trial.number}: {measured(trial.value)}"
                )
                for trial in known
                if trial.state == state
            ),
        )
        for name, look, state in (("pruned", "train", TrialState.PRUNED), ("finished", "val", TrialState.COMPLETE))
    ]
    return frame.chart(
        f"{metric_name(plan.metric)[:1].upper()}{metric_name(plan.metric)[1:]} of each trial",
        f"{plural(len(known), 'trial', spec='')}; the line is the best up to each.",
        "trial",
        lines=[Line("best so far", "thin", frame.path(best_so_far)), *(line for line in lines if line.dots)],
    )


def _curves(plan: SweepPlan, trials: Sequence[FrozenTrial]) -> Chart | None:
    """Chart the validation metric over the epochs of each trial."""
    with_epochs = [trial for trial in trials if trial.intermediate_values]
    if not with_epochs:
        return None
    values = [value for trial in with_epochs for value in trial.intermediate_values.values()]
    low, high = padded(values)
    most = max(max(trial.intermediate_values) for trial in with_epochs)
    frame = Frame(x_low=1.0, x_high=float(max(2, most)), y_low=low, y_high=high)
    best = best_of(plan, trials)
    lines = []
    for trial in ranked(plan, with_epochs)[:MOST_LINES]:
        is_best = best is not None and trial.number == best.number
        look = "val" if is_best else "thin" if trial.state == TrialState.COMPLETE else "train thin"
        points = [(float(epoch), value) for epoch, value in sorted(trial.intermediate_values.items())]
        dots = (Dot(frame.x(points[0][0]), frame.y(points[0][1]), "", 1.5),) if len(points) == 1 else ()
        lines.append(Line("best trial" if is_best else "", look, frame.path(points), dots))
    return frame.chart(
        f"Validation {metric_name(plan.metric)} by epoch",
        f"{plural(len(with_epochs), 'trial over its epochs', 'trials over their epochs', spec='')}.",
        "epoch",
        lines=list(reversed(lines)),
    )


def _coordinates(plan: SweepPlan, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
    """Return parallel coordinates: an axis for each setting and one for the metric, and a line for each trial."""
    known = [trial for trial in ranked(plan, _known(trials)) if len(trial.params) == len(plan.space.dimensions)]
    if len(known) < 2:
        return None
    dimensions = plan.space.dimensions
    frame = Frame(x_low=0, x_high=len(dimensions), y_low=0, y_high=1, width=760, height=302, left=56, right=56, top=34)
    values = [trial.value or 0.0 for trial in known]
    low, high = min(values), max(values)
    axes = [Axis(frame.x(index), setting.name, _labels(setting, frame)) for index, setting in enumerate(dimensions)]
    ends = ((frame.y(0), number(low)), (frame.y(1), number(high)))
    axes.append(Axis(frame.x(len(dimensions)), metric_name(plan.metric), ends))
    best = best_of(plan, trials)
    lines = []
    for place, trial in enumerate(known[:MOST_LINES]):
        places = [_place(setting, trial.params[setting.name]) for setting in dimensions]
        places.append(((trial.value or 0.0) - low) / ((high - low) or 1.0))
        is_best = best is not None and trial.number == best.number
        look = "line" if is_best else "line thin" if trial.state == TrialState.COMPLETE else "line train thin"
        strength = 1.0 if is_best else round(0.7 - 0.55 * place / len(known), 2)
        lines.append((frame.path(enumerate(places)), look, strength, f"trial {trial.number}: {measured(trial.value)}"))
    return {"axes": axes, "lines": list(reversed(lines)), "frame": frame}


def _place(setting: Dimension, value: Any) -> float:
    """Return the place of a value on its axis, from 0 at the foot to 1."""
    if isinstance(setting, Choices):
        return (setting.values.index(str(value)) + 0.5) / len(setting.values)
    if setting.log:
        return math.log(value / setting.low) / math.log(setting.high / setting.low)
    return (float(value) - setting.low) / (setting.high - setting.low)


def _labels(setting: Dimension, frame: Frame) -> tuple[tuple[float, str], ...]:
    if isinstance(setting, Choices):
        return tuple((frame.y(_place(setting, value)), value) for value in setting.values)
    return (frame.y(0), f"{setting.low:g}"), (frame.y(1), f"{setting.high:g}{' (log)' if setting.log else ''}")
