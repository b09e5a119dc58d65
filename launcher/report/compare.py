"""The results of several runs, beside the settings in which their recipes differ, for `compare`."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.cluster.status import status_of
from launcher.errors import Problems, UserError
from launcher.files import json_text, metrics_from_json, read_json, read_metrics, refuse_endless
from launcher.inference.run_records import epochs_of, read_rows
from launcher.recipe.dotted import flat, join
from launcher.text import inert_cell, one_line
from launcher.training.best import mode_of, rank_of


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one run: the metrics of its final model or, if it has none yet, of its best epoch so far."""

    run: str
    state: str
    step: int
    settings: dict[str, Any]
    """The recipe's fields, by dotted name."""
    readable: dict[str, Any]
    """The same for people: a part's class and the freeze plan in few words (`plan_word`) stand beside their fields."""
    metrics: dict[str, float]
    monitored: str | None
    """The metric by which its best epoch was chosen."""


def read_result(run_dir: Path) -> Result:
    """Read the result of a run. Raises UserError if `run_dir` is not a run dir."""
    if not (run_dir / "recipe.json").exists():
        raise UserError(f"{run_dir}: no run dir (it has no recipe.json)")
    refuse_endless(run_dir)
    recipe = read_json(run_dir / "recipe.json")
    if not isinstance(recipe, dict):
        raise UserError(f"{run_dir / 'recipe.json'}: must hold a JSON object, not a {type(recipe).__name__}")
    epochs = epochs_of(read_rows(run_dir / "metrics.jsonl"))
    best = next((row for row in reversed(epochs) if row.get("best")), epochs[-1] if epochs else None)
    metrics = metrics_from_json(best["val"]) if best else {}
    final = run_dir / "final/metrics.json"
    if final.is_file():
        metrics = read_metrics(final)
    status, settings = status_of(str(run_dir)), flat(recipe)
    return Result(str(run_dir), status.state, status.step, settings, _readable(recipe), metrics, _monitored(run_dir))


def _readable(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        kind = value.get("type")
        fields = {str(key): field for key, field in value.items() if key != "type"}
        if kind == "pathlib.Path":
            return {at: value.get("path")}
        own = {at: str(kind).rpartition(".")[2]} if kind is not None and at else {}
    elif isinstance(value, list):
        fields = {str(index): item for index, item in enumerate(value)}
        own = {at: plan_word(value)} if at == PLAN else {}
        if not any(isinstance(item, (dict, list)) for item in value):
            return {at: ", ".join(map(str, value))}
    else:
        return {at: value}
    for name, field in fields.items():
        own |= _readable(field, join(at, name))
    return own


PLAN = "freeze_plan"
_SHORT_NAMES = {"linear_probe": "probe", "full_finetune": "full"}


def plan_word(phases: Sequence[Any]) -> str:
    """Put a freeze plan from recipe.json into few words: names, epochs, and the scale of the backbone's rate.

    >>> full = {"name": "full_finetune", "epochs": 5, "rules": [["head", 1.0], ["backbone", 0.03]]}
    >>> plan_word([{"name": "linear_probe", "epochs": 20, "rules": [["head", 1.0], ["backbone", 0.0]]}, full])
    'probe 20 + full 5 x0.03'
    """
    return " + ".join(_phase_word(phase) for phase in phases if isinstance(phase, dict))


def _phase_word(phase: dict[str, Any]) -> str:
    name, scale = str(phase.get("name")), 0.0
    match phase.get("rules"):
        case [["head", 1.0], ["backbone", int() | float() as scale]]:
            pass
    return f"{_SHORT_NAMES.get(name, name)} {phase.get('epochs')}{f' x{scale:g}' if scale not in (0, 1) else ''}"


def _said_by_word(results: Sequence[Result]) -> bool:
    """Return whether the plans in words show every difference in the names, epochs and rules of the runs' phases."""
    fields = [
        repr([(name, value) for name, value in result.readable.items() if _is_in_word(name)]) for result in results
    ]
    words = [str(result.readable.get(PLAN)) for result in results]
    return len(set(zip(words, fields, strict=True))) == len(set(words))


def _is_in_word(name: str) -> bool:
    pieces = name.split(".")
    return pieces[0] == PLAN and len(pieces) > 2 and pieces[2] in ("name", "epochs", "rules")


def _monitored(run_dir: Path) -> str | None:
    for path in sorted(run_dir.glob("checkpoints/step-*/progress.json"), reverse=True):
        try:
            best = json.loads(path.read_text())["run_best"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(best, dict) and "metric" in best:
            return str(best["metric"]).removeprefix("ema_")
    return None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The results, the best first, and the columns worth showing."""

    results: tuple[Result, ...]
    differing: tuple[str, ...]
    metrics: tuple[str, ...]
    readable: tuple[str, ...]
    """The names in `Result.readable` of settings that differ, for people."""

    def table(self) -> list[list[str]]:
        """Return cells for people: the names of the runs in the first row, then their metrics, then what differs."""
        first = self.results[0]
        states = len({(result.state, result.step) for result in self.results}) > 1 or first.state != "finished"
        rows = [["", *(one_line(result.run) for result in self.results)]]
        if states:
            rows.append(["state", *(f"{result.state}, step {result.step}" for result in self.results)])
        rows += [[one_line(name), *(_cell(r.metrics.get(name, ABSENT)) for r in self.results)] for name in self.metrics]
        return rows + [[name, *(_cell(r.readable.get(name, ABSENT)) for r in self.results)] for name in self.readable]

    @property
    def columns(self) -> list[str]:
        """The names of the columns of `rows`."""
        return ["run", "state", "step", *self.differing, *self.metrics]

    def rows(self) -> list[list[Any]]:
        """Return the values of each run in the order of `columns`, None where a run has none."""
        return [
            [
                result.run,
                result.state,
                result.step,
                *(result.settings.get(name) for name in self.differing),
                *(result.metrics.get(name) for name in self.metrics),
            ]
            for result in self.results
        ]

    def as_csv(self) -> str:
        """Return the rows as CSV in which no spreadsheet takes a cell for a formula."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([inert_cell(name) for name in self.columns])
        writer.writerows([["" if cell is None else inert_cell(cell) for cell in row] for row in self.rows()])
        return text.getvalue()

    def as_json(self) -> str:
        """Return the rows as JSON, one object per run."""
        return json_text([dict(zip(self.columns, row, strict=True)) for row in self.rows()], indent=1)


def compare(run_dirs: Sequence[Path], by: str | None = None) -> Comparison:
    """Compare runs, the best by metric `by` first (by default the one by which the runs chose their best epochs).

    Raises UserError with a line for each folder that is not a run dir, and for a metric that no run has.
    """
    problems, results = Problems(), []
    for run_dir in run_dirs:
        with problems.collected():
            results.append(read_result(run_dir))
    problems.raise_if_any()
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    by = by or next((result.monitored for result in results if result.monitored), None)
    if by is not None and by not in names and names:
        raise UserError(f"--by {by}: no run has this metric; there are: {', '.join(names)}")
    settings = list(dict.fromkeys(name for result in results for name in result.settings))
    # 1 and 1.0 are the same setting, but true and 1 are not: repr, unlike ==, tells these two apart.
    differing = [name for name in settings if len({_key(result.settings.get(name)) for result in results}) > 1]
    readable = [
        name
        for name in dict.fromkeys(name for result in results for name in result.readable)
        if len({_key(result.readable.get(name, ABSENT)) for result in results}) > 1
    ]
    if _said_by_word(results):
        readable = [name for name in readable if not _is_in_word(name)]
    if by in names:
        names = [by, *(name for name in names if name != by)]
    shown = [name for name in names if "/" not in name and not name.startswith("ema_")]
    ordered = tuple(sorted(results, key=lambda result: _place(result, by)))
    return Comparison(ordered, tuple(differing), tuple(shown), tuple(readable))


ABSENT = "-"
"""The cell of a setting for which a run's recipe has no field."""


def _cell(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value))


def _key(value: Any) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    with contextlib.suppress(OverflowError):  # an integer of hundreds of digits is too large for a float
        return repr(float(value)) if is_number else repr(value)
    return repr(value)


def _place(result: Result, by: str | None) -> tuple[bool, float, float, str]:
    """Return the sort key that puts the best run first: ranked as epochs are, equal ones by name."""
    if by is None or result.metrics.get(by) is None:
        return True, 0.0, 0.0, result.run
    value, loss = rank_of(result.metrics, by, mode_of(by, "", "max"))
    return False, -value, -loss, result.run
