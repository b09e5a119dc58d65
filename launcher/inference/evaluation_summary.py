"""Display of an evaluation on the screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from launcher.console import show_table
from launcher.inference.evaluation import Evaluation
from launcher.metrics.bootstrap import LEVEL, Interval
from launcher.metrics.calibration import few_positives
from launcher.text import number, one_line

MOST_CLASSES = 20


def show(evaluation: Evaluation, console: Console) -> None:
    """Print the metrics with their intervals, and the details of the classes; the file has all numbers."""
    then = evaluation.unlike_training()
    where = "data" if evaluation.subject.data else evaluation.subject.split_name
    rows = [["metric", where, f"{LEVEL:.0%} interval", *["in the run"] * bool(then)]]
    for name, value in evaluation.metrics.items():
        if "/" not in name:
            interval = evaluation.intervals.get(name)
            of_the_run = [number(evaluation.run.metrics[name]) if name in then else ""] * bool(then)
            rows.append([one_line(name), number(value), _interval(interval), *of_the_run])
    show_table(rows, console)
    if then:
        console.print(
            "not the metrics of the run itself: the images, or the code of the recipe, are not what they were",
            style="yellow",
            soft_wrap=True,
        )
    _show_details(evaluation.details, console)
    names = f"{evaluation.file} and {evaluation.samples_file.name}"
    console.print(f"written to {one_line(names)}", markup=False, soft_wrap=True)


def _interval(interval: Interval | None) -> str:
    return f"{number(interval.low)} to {number(interval.high)}" if interval else "not defined"


def _show_details(details: dict[str, Any], console: Console) -> None:
    if "classes" in details:
        columns = ("precision", "recall", "f1", "support")
        rows = {name: [scores[c] for c in columns] for name, scores in details["classes"].items()}
        _show_rows("class", columns, rows, console)
    if "calibration" in details:
        scaling = details["calibration"]
        line = f"calibration error (ECE) {number(scaling['before']['ece'])}"
        if scaling["fitted"] == "never":
            why = scaling["reason"] and f"no temperature was fitted: {scaling['reason']}"
            line += f"; {why or 'no temperature yet: it is fitted by evaluating the validation images'}"
        else:
            line += f", {number(scaling['after']['ece'])} with temperature {scaling['temperature']:.4g}"
            line += f", fitted {scaling['fitted']}"
        console.print(line, soft_wrap=True)
    if "labels" in details:
        rows = {
            name: [*(label["at_threshold"][c] for c in ("precision", "recall", "f1", "support")), label["threshold"]]
            for name, label in details["labels"].items()
        }
        _show_rows("label", ("precision", "recall", "f1", "support", "from probability"), rows, console)
        if few := few_positives({name: label["support"] for name, label in details["labels"].items()}):
            console.print(f"thresholds that rest on few images: {few}", markup=False, soft_wrap=True)
    if "residuals" in details:
        rows = {name: [r["mean"], r["standard_deviation"]] for name, r in details["residuals"].items()}
        _show_rows("residual", ("mean", "standard deviation"), rows, console)


def _show_rows(what: str, columns: tuple[str, ...], rows: dict[str, list[Any]], console: Console) -> None:
    if len(rows) > MOST_CLASSES:
        return
    shown = [
        [one_line(name), *("-" if c is None else number(c) if isinstance(c, float) else f"{c:,}" for c in cells)]
        for name, cells in rows.items()
    ]
    show_table([[what, *columns], *shown], console)
