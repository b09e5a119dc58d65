"""The calibration of the probabilities: the reliability diagram, before and after temperature scaling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launcher.report.charts import Chart, Dot, Frame, Line, Tick
from launcher.report.facts import Facts
from launcher.report.page import Section
from launcher.text import number, plural


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for an evaluation without calibration."""
    scaling = facts.evaluation.get("calibration")
    if not scaling:
        return None
    return Section(
        "calibration",
        "Calibration",
        {
            "charts": [_reliability(scaling), _confidence(scaling)],
            "temperature": f"{scaling['temperature']:.4g}",
            "fitted": scaling["fitted"],
            "reason": scaling.get("reason", ""),
            "rows": [
                ("expected calibration error", number(scaling["before"]["ece"]), number(scaling["after"]["ece"])),
                ("negative log-likelihood", number(scaling["before"]["nll"]), number(scaling["after"]["nll"])),
            ],
        },
    )


def _frame() -> Frame:
    return Frame(x_low=0.0, x_high=1.0, y_low=0.0, y_high=1.0)


def _ticks(place: Callable[[float], float]) -> list[Tick]:
    return [Tick(place(value), f"{value:g}") for value in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _reliability(scaling: dict[str, Any]) -> Chart:
    frame = _frame()
    lines = [Line("", "ideal", frame.path([(0.0, 0.0), (1.0, 1.0)]))]
    kinds = (("before", "as the network gives them", "train thin"), ("after", "with temperature", "val thin"))
    for when, name, look in kinds:
        bins = scaling[when]["bins"]
        most = max((bin["samples"] for bin in bins), default=1)
        dots = tuple(
            Dot(
                frame.x(bin["confidence"]),
                frame.y(bin["accuracy"]),
                f"confidence {bin['confidence']:.3f}: {bin['accuracy']:.3f} right of {bin['samples']:,}",
                round(2 + 4 * (bin["samples"] / most) ** 0.5, 1),
            )
            for bin in bins
        )
        lines.append(Line(name, look, frame.path([(bin["confidence"], bin["accuracy"]) for bin in bins]), dots))
    return frame.chart(
        "Share that is right, by confidence",
        f"Expected calibration error {number(scaling['before']['ece'])}, "
        f"with temperature {number(scaling['after']['ece'])}.",
        "probability of the predicted class",
        lines=lines,
        x_ticks=_ticks(frame.x),
        y_ticks=_ticks(frame.y),
    )


def _confidence(scaling: dict[str, Any]) -> Chart:
    """Return the histogram of the confidences, before and after the temperature."""
    total = sum(bin["samples"] for bin in scaling["after"]["bins"]) or 1
    frame = _frame()
    bars = []
    for when, look, part in (("before", "bar-train", 0), ("after", "bar-val", 1)):
        for bin in scaling[when]["bins"]:
            x, x_end = frame.x(bin["from"]) + 1, frame.x(bin["to"]) - 1
            width = (x_end - x) / 2
            y = frame.y(bin["samples"] / total)
            title = f"{bin['from']:.2f} to {bin['to']:.2f}: {plural(bin['samples'], 'image')} ({when} temperature)"
            bars.append((round(x + part * width, 1), y, round(width, 1), round(frame.y(0) - y, 1), look, title))
    return frame.chart(
        "Share of the images, by confidence",
        "How the confidences are spread, before and after the temperature.",
        "probability of the predicted class",
        bars=bars,
        x_ticks=_ticks(frame.x),
        y_ticks=_ticks(frame.y),
    )
