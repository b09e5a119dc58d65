"""Loss, metric and learning rate over the epochs of all phases."""

from __future__ import annotations

import math
from collections.abc import Sequence

from launcher import text
from launcher.report.charts import Band, Chart, Dot, Frame, Line, Point, Tick, padded, thinned, ticks
from launcher.report.facts import Epoch, Facts
from launcher.report.formats import SHARES, metric_name, value_of
from launcher.report.page import Section


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for a run without evaluated epochs."""
    if not facts.epochs:
        return None
    charts = [chart for chart in (_loss(facts), _metric(facts), _rate(facts)) if chart]
    return Section("curves", "Training", {"charts": charts, "phases": _legend(facts)})


def _frame(facts: Facts, values: Sequence[float], zero: bool = False) -> Frame:
    low, high = padded(values)
    return Frame(x_low=0.0, x_high=float(len(facts.epochs)), y_low=0.0 if zero else low, y_high=high)


def bands(facts: Facts, frame: Frame) -> list[Band]:
    """Return the stretch of the x axis that each phase takes."""
    stretches: list[Band] = []
    for number in range(facts.epochs[-1].number + 1):
        own = [epoch.count for epoch in facts.epochs if epoch.number == number]
        if not own:
            continue
        name = next(epoch.phase for epoch in facts.epochs if epoch.number == number)
        begin, end = frame.x(min(own) - 1), frame.x(max(own))
        label = name
        if len(label) * 5.4 > end - begin - 4:
            label = str(number + 1) if end - begin > 10 else ""
        stretches.append(Band(begin, round(end - begin, 1), label, f"phase {number + 1}: {name}"))
    return stretches


def _legend(facts: Facts) -> list[str]:
    """Return the names of the phases by number, as narrow bands have no room for them."""
    names: dict[int, str] = {}
    for epoch in facts.epochs:
        names.setdefault(epoch.number, epoch.phase)
    return [name for _, name in sorted(names.items())]


def epoch_ticks(frame: Frame) -> list[Tick]:
    """Return ticks at whole epochs."""
    values = [value for value, _ in ticks(0, frame.x_high, 6) if value == int(value) and value > 0]
    return [Tick(frame.x(value), f"{int(value)}") for value in values]


def _loss(facts: Facts) -> Chart | None:
    by_step: list[Point] = [(step.at, step.loss) for step in facts.steps if step.loss is not None]
    val = [(epoch, facts.validated(epoch, "loss")) for epoch in facts.epochs]
    points = [(float(epoch.count), value) for epoch, value in val if value is not None]
    lines = thinned(by_step)
    frame = _frame(facts, [y for _, y in (*lines, *points)])
    drawn = [Line("training", "train", frame.path(lines))]
    if points:
        dots = _dots(frame, facts.epochs, [y for _, y in points], "loss")
        drawn.append(Line("validation", "val", frame.path(points), dots))
    summary = f"Loss over {text.plural(len(facts.epochs), 'epoch', spec='')}; "
    summary += f"training ended at {text.number(facts.epochs[-1].train_loss)}"
    summary += f", validation at {points[-1][1]:.4g}." if points else "."
    return frame.chart("Loss", summary, "epoch", x_ticks=epoch_ticks(frame), lines=drawn, bands=bands(facts, frame))


def _metric(facts: Facts) -> Chart | None:
    metric = facts.monitor
    unit = 100.0 if metric in SHARES else 1.0
    values = [(epoch, facts.validated(epoch, metric)) for epoch in facts.epochs]
    points = [(float(epoch.count), unit * value) for epoch, value in values if value is not None]
    if not points:
        return None
    raw: list[Point] = []
    if facts.averaged:
        raw = [(float(epoch.count), unit * epoch.val.get(metric, math.nan)) for epoch in facts.epochs]
    frame = _frame(facts, [y for _, y in (*points, *raw)])
    name = metric_name(metric)
    drawn = [Line("without averaging", "train", frame.path(raw))] if raw else []
    dots = _dots(frame, facts.epochs, [y for _, y in points], name)
    drawn.append(Line("averaged weights" if raw else "", "val", frame.path(points), dots))
    kept = facts.kept
    value = facts.validated(kept, metric) if kept else None
    marks = [frame.mark(kept.count, unit * value, value_of(metric, value))] if kept and value is not None else []
    summary = f"Validation {name} over {text.plural(len(points), 'epoch', spec='')}"
    summary += f"; kept is epoch {kept.count} with {value_of(metric, value)}." if kept and value is not None else "."
    return frame.chart(
        f"Validation {name}{', %' if unit > 1 else ''}",
        summary,
        "epoch",
        x_ticks=epoch_ticks(frame),
        lines=drawn,
        bands=bands(facts, frame),
        marks=marks,
    )


def _rate(facts: Facts) -> Chart | None:
    points = [(step.at, step.lr) for step in facts.steps]
    if not points:
        return None
    frame = _frame(facts, [y for _, y in points], zero=True)
    highest = max(y for _, y in points)
    return frame.chart(
        "Learning rate of the head",
        f"Learning rate over the steps; the highest is {highest:.3g}.",
        "epoch",
        x_ticks=epoch_ticks(frame),
        lines=[Line("", "rate", frame.path(thinned(points)))],
        bands=bands(facts, frame),
    )


def _dots(frame: Frame, epochs: Sequence[Epoch], values: Sequence[float], name: str) -> tuple[Dot, ...]:
    """Return a dot for each epoch, or none if there are so many that they would run together."""
    if len(epochs) > 60:
        return ()
    pairs = zip(epochs, values, strict=False)
    return tuple(
        Dot(frame.x(e.count), frame.y(v), f"{e.phase} epoch {e.in_phase}: {name} {v:.4g}")
        for e, v in pairs
        if math.isfinite(v)
    )
