"""Reports on runs that ended earlier: evaluated again if necessary, with their data if these can be loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from launcher.compat import forget_accelerate
from launcher.errors import Problems, UserError
from launcher.inference.evaluate import evaluate
from launcher.inference.evaluation import write
from launcher.inference.finished_run import FinishedRun, build_data, read_finished
from launcher.recipe.protocols import Splits
from launcher.recipe.type_names import Types
from launcher.report.build import FILE, write_report
from launcher.report.facts import Facts, read_facts
from launcher.report.inspect.grad_cam import check_installed
from launcher.report.inspect.inspect import explain
from launcher.training.launch import Launch


def report_again(
    run_dirs: Sequence[Path], to: Path | None, launch: Launch, report: Callable[[str], None], explains: bool, own: Types
) -> Path:
    """Write a report on `facts_again` to `to`, or else into the first run dir, and return its path."""
    file = to or run_dirs[0] / FILE
    write_report(facts_again(run_dirs, launch, report=report, explains=explains, own=own), file)
    return file


def facts_again(
    run_dirs: Sequence[Path],
    launch: Launch,
    *,
    report: Callable[[str], None],
    explains: bool = False,
    own: Types | None = None,
) -> list[Facts]:
    """Return the facts on finished runs, after evaluating those whose evaluation is missing or stale.

    With `explains`, the explanation of each run is written as well. Raises UserError with a line for each folder that
    is not a finished run and, with `explains`, for each run that cannot be explained.
    """
    problems = Problems()
    if explains:
        with problems.collected():
            check_installed()
    runs: list[tuple[Path, FinishedRun | None, str]] = []
    for path in run_dirs:
        with problems.collected():
            runs.append(_opened(path, own))
    problems.raise_if_any()
    all_facts = [_facts(path, finished, why_not, launch, report) for path, finished, why_not in runs]
    if explains:
        for facts, (_, finished, _) in zip(all_facts, runs, strict=True):
            with problems.collected():
                _explain(facts, finished, launch, report)
        problems.raise_if_any()
    return all_facts


def _explain(facts: Facts, finished: FinishedRun | None, launch: Launch, report: Callable[[str], None]) -> None:
    if finished is None or facts.samples is None:
        raise UserError(f"{facts.path}: cannot be explained: {'; '.join(facts.notes) or facts.thumbnails.reason}")
    forget_accelerate(process_group=True)
    folder = explain(finished, facts.samples, launch, report)
    report(f"written to {folder}: suspicious_labels.csv, near_duplicates.csv, map.csv")


def _opened(path: Path, own: Types | None) -> tuple[Path, FinishedRun | None, str]:
    """Return the folder of a run, the run as read from it, and why it could not be read.

    If the recipe can no longer be read, for instance for its parts of the user's own, there are still the files.
    """
    try:
        return path, read_finished(path, own), ""
    except UserError as error:
        if not (path / "recipe.json").is_file() or not (path / "final/metrics.json").is_file():
            raise
        return path, None, "; ".join(error.problems)


def _facts(
    path: Path, finished: FinishedRun | None, why_not: str, launch: Launch, report: Callable[[str], None]
) -> Facts:
    notes: list[str] = []
    if is_stale(path):
        if finished is not None:
            why_not = _evaluate(finished, launch, report)
        if why_not:
            there = (path / "evaluation.parquet").is_file()
            notes.append(f"The run could not be evaluated{' again' if there else ''}: {why_not}")
            if there:
                notes.append("What is said of single images and classes is of an evaluation of other weights.")
    splits: Splits | None = None
    if finished is not None:
        splits, why_not = _data(finished)
    without = f"Without pictures: {why_not}" if splits is None else ""
    for line in (*notes, without):
        if line:
            report(f"{path}: {line}")
    return read_facts(path, splits, without, tuple(notes))


def is_stale(path: Path) -> bool:
    """Return whether the evaluation is missing or older than the weights."""
    try:
        return (path / "evaluation.parquet").stat().st_mtime_ns < (path / "final/model.safetensors").stat().st_mtime_ns
    except OSError:
        return True


def _evaluate(finished: FinishedRun, launch: Launch, report: Callable[[str], None]) -> str:
    """Evaluate a run; return why that was not possible, or nothing."""
    # Accelerate keeps one precision per process, and each run may have another one.
    forget_accelerate(process_group=True)
    try:
        evaluation = evaluate(finished, launch, report=report)
        if evaluation is not None:
            write(evaluation)
    except (UserError, OSError) as error:
        return "; ".join(error.problems) if isinstance(error, UserError) else str(error)
    return ""


def _data(finished: FinishedRun) -> tuple[Splits | None, str]:
    try:
        return build_data(finished), ""
    except UserError as error:
        return None, "; ".join(error.problems)
    except Exception as error:  # a user's own data part may raise anything
        return None, " ".join(f"{type(error).__name__}: {error}".split())
