"""Whole sweep: the search, the repetitions of the best over seeds, and the files that are written of both."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from launcher.cluster.attempts import ATTEMPTS_WITHOUT_PROGRESS
from launcher.errors import UserError
from launcher.files import read_json, write_atomic
from launcher.recipe.loading import LoadedRecipe
from launcher.text import number as measured
from launcher.training.attempt import newest_step
from launcher.tuning.sweep.best import write_best
from launcher.tuning.sweep.page import FILE as PAGE
from launcher.tuning.sweep.page import page_of
from launcher.tuning.sweep.plan import SweepPlan, open_plan
from launcher.tuning.sweep.space import Space
from launcher.tuning.sweep.study import Claim, PrunerName, SamplerName, Study
from launcher.tuning.sweep.table import Table, table_of
from launcher.tuning.sweep.worker import Asked, End, Worker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Request of the command line."""

    loaded: LoadedRecipe
    """Recipe with the fixed overrides."""
    spec: str
    space: Space
    folder: Path
    trials: int
    seeds: int
    sampler: SamplerName
    pruner: PrunerName
    processes: int
    words: Sequence[str]
    """Options of `train`, for each trial."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """State of the sweep when this worker leaves."""

    end: End
    table: Table
    page: Path
    best: Path | None
    """Recipe file of the best trial, if one has finished."""
    model: Path | None
    """Model of that trial itself."""
    certainty: str | None
    command: str
    """Command that trains the best."""
    is_over: bool
    """True if there is nothing left to do, here or in another worker."""


class Sweep:
    """Sweep, as one worker takes part in it."""

    def __init__(self, request: Request, report: Callable[[str], None]) -> None:
        """Open or begin the studies of the sweep.

        Raises:
            UserError: The study is of something else, or the recipe or its choices are wrong.
        """
        self._request, self._report = request, report
        self.plan: SweepPlan = open_plan(request.folder, request.loaded, request.spec, request.space, report)
        self._search: Study | None = None
        if request.space.dimensions:
            self._search = Study(
                request.folder,
                self.plan,
                kind="trial",
                dimensions=request.space.dimensions,
                total=request.trials,
                sampler=request.sampler,
                pruner=request.pruner,
            )
        self._seeds: Study | None = None
        self._best: FrozenTrial | None = None

    @property
    def _first_seed(self) -> int:
        # The best trial was chosen for its luck, too, so its own seed would make the mean too good.
        return self.plan.seed + (1 if self._search is not None else 0)

    def work(self) -> Outcome:
        """Take part until there is nothing left to take, or until this worker is asked to leave."""
        request, asked = self._request, Asked()
        # Slurm restarts tasks that died, and a node that only waits could do something else.
        waits = bool(request.seeds) or "SLURM_JOB_ID" not in os.environ
        worker = Worker(
            spec=request.spec, words=request.words, processes=request.processes, waits=waits, report=self._report
        )
        end: End = "done"
        before = self._progress()
        with asked.watched():
            if self._search is not None:
                end = worker.work(self._search, self._overrides_of_trial, asked, self._write)
            if end == "done" and request.seeds and self._begin_seeds():
                assert self._seeds is not None
                end = worker.work(self._seeds, self._overrides_of_seed, asked, self._write)
            if end == "stopped":
                _check_attempts(request.folder, advanced=self._progress() != before)
            return self._outcome(end)

    def _progress(self) -> list[tuple[str, int]]:
        """Return the newest saved step of each run of the study."""
        runs = (path for path in self._request.folder.glob("*-[0-9]*") if path.is_dir())
        return sorted((path.name, newest_step(path)) for path in runs)

    def _overrides_of_trial(self, claim: Claim) -> list[str]:
        return self.plan.space.overrides(claim.values)

    def _begin_seeds(self) -> bool:
        """Begin the repetitions over seeds, and return whether there is something to repeat."""
        kind = "seed"
        if self._search is not None:
            self._best = self._search.best()
            if self._best is None:
                return False
            kind = f"{self._search.folder_of(self._best.number).name}-seed"
        self._seeds = Study(self._request.folder, self.plan, kind=kind, dimensions=(), total=self._request.seeds)
        return True

    def _best_values(self) -> dict[str, Any]:
        return dict(self._best.params) if self._best is not None else {}

    def _overrides_of_seed(self, claim: Claim) -> list[str]:
        words = self.plan.space.overrides(self._best_values())
        unseeded = [word for word in words if word.partition("=")[0].strip() != "seed"]
        return [*unseeded, f"seed={self._first_seed + claim.number}"]

    def _table(self) -> Table:
        study = self._search or self._seeds
        assert study is not None
        return table_of(self._search, self._seeds, self._first_seed, self._best, study)

    def _write(self) -> None:
        """Write the report as things stand, and the best recipe, also while the sweep goes on."""
        command = self._command()
        importances = self._search.importances() if self._search else {}
        trials = self._search.trials() if self._search else []
        text = page_of(self.plan, self._table(), trials, importances, command, self._validation_images())
        write_atomic(self._request.folder / PAGE, text)
        best = self._search.best() if self._search else None
        if best is not None:
            summary = f"The best of a sweep: trial {best.number}, {self.plan.metric} {measured(best.value)}."
            overrides = self.plan.space.overrides(best.params)
            write_best(self._request.folder, self.plan.loaded, overrides, summary, command)

    def _command(self) -> str:
        """Return the command that trains the best, or the recipe itself if nothing varies."""
        words = ["python", "-m", "launcher"]
        if self._search is None:
            return shlex.join([*words, self.plan.spec, *self.plan.space.fixed])
        folder = self._request.folder
        return shlex.join([*words, str(folder / "best.py"), "--run-dir", str(folder / "best")])

    def _best_run(self) -> Path | None:
        """Return the run dir of the best trial, or None if none has finished."""
        best = self._search.best() if self._search else None
        return None if self._search is None or best is None else self._search.folder_of(best.number)

    def _model(self) -> Path | None:
        run = self._best_run()
        folder = None if run is None else self._request.folder / run.name / "final"
        return folder if folder is not None and folder.is_dir() else None

    def _validation_images(self) -> int:
        """Return the number of images on which the best trial was measured, or 0 if it does not record that."""
        run = self._best_run()
        try:
            return 0 if run is None else int(read_json(run / "environment.json")["data"]["val_samples"])
        except (UserError, KeyError, TypeError, ValueError):
            return 0

    def _outcome(self, end: End) -> Outcome:
        is_over = all(study.is_over for study in (self._search, self._seeds) if study is not None)
        self._write()
        best = self._request.folder / "best.py"
        return Outcome(
            end=end,
            table=self._table(),
            page=self._request.folder / PAGE,
            best=best if best.exists() else None,
            model=self._model(),
            certainty=self._table().certainty(self._validation_images()),
            command=self._command(),
            is_over=is_over,
        )


def _check_attempts(folder: Path, *, advanced: bool, environ: Mapping[str, str] = os.environ) -> None:
    """Count the starts of a Slurm task that ended before any trial of the study had saved a step.

    Raises:
        UserError: There were too many in a row: requeued, the task would go on so for ever.
    """
    name = "_".join(filter(None, (environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID"))))
    if not name:
        return
    file = folder / f".stood-{name}"
    if advanced:
        file.unlink(missing_ok=True)
        return
    stood = len(file.read_text()) + 1 if file.exists() else 1
    if stood >= ATTEMPTS_WITHOUT_PROGRESS:
        file.unlink(missing_ok=True)
        raise UserError(
            f"{folder}: {stood} starts of this task in a row ended before a step was saved; ask for more time"
        )
    write_atomic(file, "." * stood)
