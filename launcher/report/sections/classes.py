"""Precision, recall and F1 of each class or label, with its number of images."""

from __future__ import annotations

import dataclasses
from typing import Any

from launcher.metrics.calibration import few_positives
from launcher.report.facts import Facts
from launcher.report.page import Section
from launcher.text import number

SHOWN_AT_ONCE = 30


@dataclasses.dataclass(frozen=True)
class Row:
    """The row of a class or label."""

    name: str
    scores: list[tuple[str, float | None]]
    support: int
    threshold: str | None


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for an evaluation without classes and labels."""
    classes, labels = facts.evaluation.get("classes"), facts.evaluation.get("labels")
    if classes:
        rows = [_row(name, scores, None) for name, scores in classes.items()]
    elif labels:
        rows = [_row(name, label["at_threshold"], f"{label['threshold']:.3f}") for name, label in labels.items()]
    else:
        return None
    # The weakest first, as this is what a reader looks for.
    rows.sort(key=lambda row: (row.scores[2][1] is None, row.scores[2][1] or 0.0, row.scores[1][1] or 0.0))
    what = "class" if classes else "label"
    half = labels and {
        "before": _mean([label["at_0.5"]["f1"] for label in labels.values()]),
        "after": _mean([label["at_threshold"]["f1"] for label in labels.values()]),
    }
    return Section(
        "classes",
        "Classes" if classes else "Labels and thresholds",
        {
            "what": what,
            "first": rows[:SHOWN_AT_ONCE],
            "rest": rows[SHOWN_AT_ONCE:],
            "thresholds": bool(labels),
            "half": half,
            "few": few_positives({name: label["support"] for name, label in labels.items()}) if labels else "",
        },
    )


def _row(name: str, scores: dict[str, Any], threshold: str | None) -> Row:
    return Row(name, [(key, scores[key]) for key in ("precision", "recall", "f1")], scores["support"], threshold)


def _mean(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return number(sum(known) / len(known)) if known else "–"
