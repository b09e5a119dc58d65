"""Trials of a sweep as rows, the best first, for people, spreadsheets and programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import statistics
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from launcher.files import json_text
from launcher.metrics.bootstrap import LEVEL
from launcher.metrics.clopper_pearson import clopper_pearson
from launcher.report.formats import SHARES
from launcher.text import inert_cell, plural
from launcher.text import number as measured
from launcher.tuning.sweep.space import Range
from launcher.tuning.sweep.study import CAUSE, Study, ranked

_STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
    TrialState.FAIL: "failed",
}
_ORDER = list(_STATES)


@dataclasses.dataclass(frozen=True)
class Row:
    """Trial, or a repetition of one with another seed."""

    run: str
    state: str
    value: float | None
    """Value of the metric; for a pruned trial, its last one."""
    settings: dict[str, Any]
    seed: int | None
    epochs: int
    cause: str


@dataclasses.dataclass(frozen=True)
class Spread:
    """Values of a metric over seeds."""

    metric: str
    values: tuple[float, ...]

    def __str__(self) -> str:
        mean, low, high = statistics.fmean(self.values), min(self.values), max(self.values)
        over = f"on average over {plural(len(self.values), 'seed', spec='')}"
        return f"{self.metric} {measured(mean)} {over}, {measured(low)} to {measured(high)}"


@dataclasses.dataclass(frozen=True)
class Table:
    """Table of all rows, in the order in which they are shown."""

    metric: str
    mode: str
    settings: tuple[str, ...]
    """Names of what varies."""
    rows: tuple[Row, ...]
    seeds: tuple[Row, ...]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        seed = ["seed"] if self.seeds else []
        return ["run", "state", self.metric, *self.settings, *seed, "epochs", "cause"]

    def cells(self) -> list[list[Any]]:
        """Return the values in the order of `columns`, None where there is none."""
        return [
            [
                row.run,
                row.state,
                row.value,
                *(row.settings.get(name) for name in self.settings),
                *([row.seed] if self.seeds else []),
                row.epochs,
                row.cause or None,
            ]
            for row in (*self.rows, *self.seeds)
        ]

    @property
    def spread(self) -> Spread | None:
        """Spread of the metric over the finished seeds, or None without any."""
        values = tuple(row.value for row in self.seeds if row.state == "finished" and row.value is not None)
        return Spread(self.metric, values) if values else None

    def certainty(self, images: int) -> str | None:
        """Describe how far a share of `images` validation images tells the best trial from the others, or return None.

        Metrics that are not shares, and tables without a finished trial, give None.
        """
        done = [row for row in self.rows if row.state == "finished" and row.value is not None]
        if not done or self.metric not in SHARES or images < 1:
            return None
        ends = [clopper_pearson(round((row.value or 0.0) * images), images, LEVEL) for row in done]
        low, high = ends[0]
        interval = f"{LEVEL:.0%} interval {measured(low)} to {measured(high)} on {plural(images, 'image')}"
        alike = sum(other[1] >= low for other in ends[1:])
        others = "the next trial" if alike == 1 else f"the next {alike} trials"
        return f"{interval}{f', which cannot tell it from {others} (--seeds repeats it)' if alike else ''}"

    def as_csv(self) -> str:
        """Return the table as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([["" if cell is None else inert_cell(cell) for cell in row] for row in self.cells()])
        return text.getvalue()

    def as_json(self) -> str:
        """Return the table as JSON, a list with an object for each row."""
        return json_text([dict(zip(self.columns, row, strict=True)) for row in self.cells()], indent=1)


def table_of(
    search: Study | None, seeds: Study | None, first_seed: int, best: FrozenTrial | None, study: Study
) -> Table:
    """Return the table of a search and of the repetitions of its best trial.

    `seeds` repeats `best` (or the recipe itself, if nothing varies) with the seeds from `first_seed` on; `study` is
    either study.
    """
    settings = {} if best is None or search is None else _settings(search, best)
    return Table(
        study.plan.metric,
        study.plan.mode,
        tuple(setting.name for setting in study.plan.space.dimensions),
        tuple(_row(search, trial, _settings(search, trial), None) for trial in _sorted(search)) if search else (),
        tuple(_row(seeds, trial, settings, first_seed + trial.number) for trial in seeds.trials()) if seeds else (),
    )


def _sorted(study: Study) -> list[FrozenTrial]:
    return sorted(ranked(study.plan, study.trials()), key=lambda trial: _ORDER.index(trial.state))


def _row(study: Study, trial: FrozenTrial, settings: dict[str, Any], seed: int | None) -> Row:
    return Row(
        run=study.folder_of(trial.number).name,
        state=_STATES[trial.state],
        value=trial.value,
        settings=settings,
        seed=seed,
        epochs=max(trial.intermediate_values, default=0),
        cause=str(trial.user_attrs.get(CAUSE, "")),
    )


def _settings(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's settings, with numbers as numbers and choices as they were written."""
    settings: dict[str, Any] = {}
    for setting in study.plan.space.dimensions:
        if setting.name in trial.params:
            value = trial.params[setting.name]
            number = int if isinstance(setting, Range) and setting.is_integer else float
            settings[setting.name] = number(value) if isinstance(setting, Range) else str(value)
    return settings
