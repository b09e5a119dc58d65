"""The end of a run after training: its evaluation, its report, and its result on the screen."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from launcher.errors import UserError
from launcher.files import read_json
from launcher.inference.evaluation import Subject, judged, write
from launcher.inference.evaluation_details import calibration_to_store
from launcher.inference.finished_run import read_finished
from launcher.inference.labelled_data import test_split
from launcher.metrics.calibration import read_calibration
from launcher.recipe.type_names import types_in
from launcher.report.build import FILE, write_report
from launcher.report.facts import Facts, read_facts
from launcher.report.sections.speed import spent_in
from launcher.text import duration, one_line
from launcher.text import number as measured
from launcher.training.progress import Screen
from launcher.training.run import Run
from launcher.training.run_dir import RunDir

WORST = 3


def end(run: Run, outputs: torch.Tensor | None, spec: str) -> None:
    """Evaluate a finished run, write its report and show its result; on the main process only.

    `spec` is the recipe file as the user would name it again. Without `outputs` there is neither evaluation nor report.
    A failure is reported, and leaves the run finished as it is.
    """
    path, screen = run.rundir.path, run.screen
    recipe = f" --recipe {shlex.quote(spec)}" if types_in(run.recipe) else ""
    facts: Facts | None = None
    try:
        if outputs is not None:
            _evaluate(run, outputs)
            facts = read_facts(path, run.prepared.splits)
            write_report([facts], path / FILE)
        show_end(facts or read_facts(path), screen, path / FILE if facts else None, _unseen(run), recipe)
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        screen.line(
            f"no report ({cause}); to try again: python -m launcher report {shlex.quote(str(path))}{recipe}", "yellow"
        )


def _unseen(run: Run) -> str:
    """Return the option of `evaluate` for images that the run has not seen: its own test images, if it has any."""
    kind = run.recipe.task.target_kind
    with contextlib.suppress(UserError, OSError):  # test images may be absent, or be of other classes
        if test_split(run.recipe.data, kind, run.prepared.splits) is not None:
            return "--split test"
    return f"--data {'FOLDER' if kind == 'class' else 'TABLE'}"


def left(rundir: RunDir) -> list[str]:
    """List the files of this last step that are missing or incomplete, as after a kill at this point."""
    path, missing = rundir.path, []
    try:
        evaluation = read_json(path / "evaluation.json")
        stored = calibration_to_store(evaluation) if evaluation["metrics"] else None
    except (UserError, AttributeError, KeyError, TypeError):
        missing, stored = ["evaluation.json"], None
    try:
        pq.read_metadata(path / "evaluation.parquet")
        with (path / "evaluation.parquet").open("rb") as file:
            if file.read(4) != b"PAR1":
                raise OSError("its first bytes are damaged")
    except (OSError, pa.ArrowException):
        missing.append("evaluation.parquet")
    try:
        if stored is not None and not stored.keys() <= read_calibration(rundir.final).keys():
            missing.append("final/calibration.json")
    except UserError:
        missing.append("final/calibration.json")
    if not _is_whole_page(path / FILE):
        missing.append(FILE)
    return missing


def _is_whole_page(file: Path) -> bool:
    try:
        return file.read_bytes().rstrip().endswith(b"</html>")
    except OSError:
        return False


def _evaluate(run: Run, outputs: torch.Tensor) -> None:
    finished, prepared = read_finished(run.rundir.path, types_in(run.recipe)), run.prepared
    splits, subject = prepared.splits, Subject(split_name="val")
    where = run.accelerator.num_processes, run.accelerator.device.type
    write(judged(finished, subject, splits.val, splits.names, prepared.task, outputs, *where))


def show_end(facts: Facts, screen: Screen, report: Path | None, unseen: str, recipe: str) -> None:
    """Show the phases, the result, the weakest classes, and the commands to go on with.

    `unseen` is the option of `evaluate` that names its images. `again` is what the commands need besides the run dir:
    the recipe file, if it has parts of the user's own.
    """
    metric = facts.monitor
    kept, spent = facts.kept, spent_in(facts)
    rows = []
    for number, phase in enumerate(spent):
        epochs = [epoch for epoch in facts.epochs if epoch.number == number]
        values = [value for epoch in epochs if (value := facts.validated(epoch, metric)) is not None]
        best = (min if facts.mode == "min" else max)(values, default=None)
        shown = "-" if best is None else measured(best)
        name = epochs[0].phase if epochs else phase.name
        rows.append([name, str(len(epochs)), duration(phase.seconds), shown, "kept" if kept in epochs else ""])
    screen.table(["phase", "epochs", "time", f"best {metric}", ""], rows)
    for name, text in _lines(facts, report, unseen, recipe):
        screen.line(f"{name:<8} {text}")


def _lines(facts: Facts, report: Path | None, unseen: str, recipe: str) -> list[tuple[str, str]]:
    metric, path = facts.monitor, shlex.quote(str(facts.path))
    lines = []
    value, interval = facts.metrics.get(metric), facts.interval(metric)
    if value is not None and facts.evaluation.get("intervals"):
        ends = f"{measured(interval[0])} to {measured(interval[1])}" if interval else "not defined"
        lines.append(("result", f"{metric} {measured(value)}, 95 % interval {ends}"))
    worst = worst_classes(facts)
    if worst:
        classes = ", ".join(f"{one_line(name)} (F1 {measured(f1)})" for name, f1 in worst)
        lines.append(("weakest", classes))
    if report:
        lines.append(("report", str(report)))
    lines.append(("model", str(facts.path / "final")))
    commands = [f"predict {path} IMAGES", f"evaluate {path} {unseen}"]
    commands.append(f"report {path} OTHER_RUN --to comparison.html" if report else f"report {path}")
    lines += [("" if place else "next", f"python -m launcher {words}{recipe}") for place, words in enumerate(commands)]
    return lines


def worst_classes(facts: Facts) -> list[tuple[str, float]]:
    """Return the classes or labels with the lowest F1, and this F1: at most WORST or half of them, none perfect."""
    rated = sorted((scores["f1"], name) for name, scores in facts.scores.items() if scores["f1"] is not None)
    return [(name, f1) for f1, name in rated[: min(WORST, max(1, len(rated) // 2))] if f1 < 1]
