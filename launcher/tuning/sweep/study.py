"""Study: one folder, one journal, and any number of workers, with the trials that each has and their results.

    STUDY/sweep.json      what is swept, written once
    STUDY/journal.log     Optuna's record of all trials
    STUDY/trial-0007/     the run dir of a trial; LEASE in it names the worker that has it

Optuna's journal has no heartbeat, so a trial is held by a lease: a lock such as runs have. A trial that is running
according to the journal, and whose lease belongs to nobody or to a dead worker, is given to the next worker that asks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from launcher.compat import live_trial, report_value, set_attribute
from launcher.errors import UserError
from launcher.text import one_line
from launcher.training.best import rank
from launcher.training.run_lock import RunLock
from launcher.tuning.sweep.plan import SweepPlan
from launcher.tuning.sweep.space import Choices, Dimension

JOURNAL = "journal.log"
LEASE = "LEASE"
CAUSE = "cause"
"""Attribute of a trial that failed, was pruned or was not run, with the reason."""
LOSS = "loss"
"""Attribute of a trial that ended, with the validation loss, which decides between equal values of the metric."""
MUTEX_SECONDS = 60
"""Time for which a worker that died while it asked for a trial keeps the others waiting."""

SamplerName = Literal["tpe", "random"]
PrunerName = Literal["median", "hyperband", "none"]


@dataclasses.dataclass(frozen=True)
class Claim:
    """Trial that belongs to this worker."""

    number: int
    values: dict[str, Any]
    folder: Path
    lease: RunLock
    is_new: bool


class Study:
    """Trials of one kind in a study's folder: those of the search, or the repetitions over seeds."""

    def __init__(
        self,
        folder: Path,
        plan: SweepPlan,
        *,
        kind: str,
        dimensions: tuple[Dimension, ...],
        total: int,
        sampler: SamplerName = "tpe",
        pruner: PrunerName = "none",
    ) -> None:
        """Open or begin the study called `kind` in the journal; the names of its folders begin with `kind`."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.plan, self.kind, self.total = folder.absolute(), plan, kind, total
        self._sampler = sampler
        self._distributions = {dimension.name: distribution_of(dimension) for dimension in dimensions}
        # Not the default lock, which is a link: from another machine or folder, it would lead nowhere.
        journal = str(self.folder / JOURNAL)
        lock = JournalFileOpenLock(journal)
        with self._alone():
            _cut_half_row(Path(journal), lock)
            try:
                self._study = optuna.create_study(
                    storage=JournalStorage(JournalFileBackend(journal, lock_obj=lock)),
                    study_name=kind,
                    direction="maximize" if plan.mode == "max" else "minimize",
                    pruner=_pruner(pruner, plan),
                    load_if_exists=True,
                )
            except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
                raise UserError(
                    f"{journal}: is damaged ({type(error).__name__}: {one_line(str(error))}); bring it back, or give "
                    "another --study"
                ) from error

    def trials(self) -> list[FrozenTrial]:
        """Return all trials."""
        return self._study.get_trials(deepcopy=False)

    def folder_of(self, number: int) -> Path:
        """Return the run dir of a trial."""
        return self.folder / f"{self.kind}-{number:04d}"

    def claim(self) -> Claim | None:
        """Return a trial that a dead or interrupted worker has left, or else a new one, or None if there is none."""
        with self._alone():
            trials = self.trials()
            for trial in trials:
                if trial.state == TrialState.RUNNING and (lease := self._lease(trial.number)) is not None:
                    return self._claimed(trial, lease, is_new=False)
            if len(trials) >= self.total:
                return None
            # Seeded by the recipe's seed and the trial's number, so that no two workers draw the same.
            seed = int(np.random.SeedSequence([self.plan.seed, len(trials)]).generate_state(1)[0])
            self._study.sampler = _sampler(self._sampler, seed)
            number = self._study.ask(self._distributions).number
            lease = self._lease(number)
            assert lease is not None, "a trial that nobody else knows of"
            return self._claimed(self.trials()[number], lease, is_new=True)

    def report(self, claim: Claim, epoch: int, value: float) -> None:
        """Report the monitored metric after `epoch` epochs of the run."""
        trial = self.trials()[claim.number]
        if epoch not in trial.intermediate_values and math.isfinite(value):
            report_value(self._study, trial, epoch, value)

    def should_prune(self, claim: Claim) -> bool:
        """Return whether the pruner gives the trial up."""
        return self._study.pruner.prune(self._study, self.trials()[claim.number])

    def take_over_from_twin(self, claim: Claim) -> FrozenTrial | None:
        """Give this trial the result of an earlier one with the very same settings, and return that one, or None.

        A run is a function of its recipe, so the result holds for both. There is no such trial if nothing varies.
        """
        for trial in self.trials()[: claim.number]:
            ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            if ended and trial.params and trial.params == claim.values:
                for epoch, value in trial.intermediate_values.items():
                    self.report(claim, epoch, value)
                result = trial.value if trial.state == TrialState.COMPLETE else None
                loss = {LOSS: trial.user_attrs[LOSS]} if LOSS in trial.user_attrs else {}
                same = {CAUSE: f"same settings as {self.folder_of(trial.number).name}"}
                self._record(claim, trial.state, result, same | loss)
                return trial
        return None

    def finish(self, claim: Claim, value: float, loss: float = math.nan) -> None:
        """Record the value and the validation loss of the weights in the trial's `final/`; NaN stands for no loss."""
        self._record(claim, TrialState.COMPLETE, value, {LOSS: loss} if math.isfinite(loss) else {})

    def prune(self, claim: Claim, cause: str) -> None:
        """Record that the trial was pruned."""
        self._record(claim, TrialState.PRUNED, None, {CAUSE: cause})

    def fail(self, claim: Claim, cause: str) -> None:
        """Record that the trial failed."""
        self._record(claim, TrialState.FAIL, None, {CAUSE: cause})

    def _record(self, claim: Claim, state: TrialState, value: float | None, attributes: dict[str, Any]) -> None:
        with self._alone():
            trial = self.trials()[claim.number]
            if trial.state != TrialState.RUNNING or not claim.lease.is_held():
                return  # another worker has the trial, because it took this one for dead
            for name, attribute in attributes.items():
                set_attribute(self._study, trial, name, attribute)
            self._study.tell(claim.number, value, state)

    def at_work(self) -> list[int]:
        """Return the numbers of the trials that living workers have."""
        running = [trial.number for trial in self.trials() if trial.state == TrialState.RUNNING]
        return [number for number in running if RunLock(self.folder_of(number), LEASE).has_owner()]

    @property
    def is_over(self) -> bool:
        """True if all trials have ended, and no new one is to come."""
        trials = self.trials()
        return len(trials) >= self.total and all(trial.state.is_finished() for trial in trials)

    def best(self) -> FrozenTrial | None:
        """Return the best finished trial, or None."""
        return best_of(self.plan, self.trials())

    def importances(self) -> dict[str, float]:
        """Return the share of each setting in what makes a trial good.

        The method is PED-ANOVA (Watanabe et al., arXiv:2304.10255). The result is empty with too few trials (fewer than
        5), or with nothing to tell apart.
        """
        done = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        if len(done) < 5 or len(self._distributions) < 2 or len({trial.value for trial in done}) < 2:
            return {}
        return optuna.importance.get_param_importances(
            self._study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )

    def _claimed(self, trial: FrozenTrial, lease: RunLock, *, is_new: bool) -> Claim:
        values = dict(trial.params)
        if set(values) != set(self._distributions):  # its worker died while its values were drawn
            drawn = live_trial(self._study, trial)
            values = {name: _suggest(drawn, name, distribution) for name, distribution in self._distributions.items()}
        return Claim(trial.number, values, self.folder_of(trial.number), lease, is_new)

    def _lease(self, number: int) -> RunLock | None:
        lease = RunLock(self.folder_of(number), LEASE)
        try:
            lease.acquire(lambda _: None)
        except UserError:  # a living worker's
            return None
        return lease

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one worker in at a time, over all machines."""
        lock = JournalFileOpenLock(str(self.folder / "ask"), grace_period=MUTEX_SECONDS)
        lock.acquire()
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # the lock was taken from this worker, which was thought dead
                lock.release()


def ranked(plan: SweepPlan, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return trials from the best to the worst: by the metric, then by the loss, then the earlier first."""
    return sorted(trials, key=lambda trial: rank(trial.value, trial.user_attrs.get(LOSS), plan.mode), reverse=True)


def best_of(plan: SweepPlan, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the best finished trial, or None."""
    return next((trial for trial in ranked(plan, trials) if trial.state == TrialState.COMPLETE), None)


def distribution_of(setting: Dimension) -> BaseDistribution:
    """Return Optuna's distribution for a dimension."""
    if isinstance(setting, Choices):
        return CategoricalDistribution(setting.values)
    if setting.is_integer:
        return IntDistribution(int(setting.low), int(setting.high), log=setting.log, step=int(setting.step or 1))
    return FloatDistribution(setting.low, setting.high, log=setting.log, step=setting.step)


def _suggest(trial: optuna.trial.Trial, name: str, values: BaseDistribution) -> Any:
    if isinstance(values, CategoricalDistribution):
        return trial.suggest_categorical(name, values.choices)
    if isinstance(values, IntDistribution):
        return trial.suggest_int(name, values.low, values.high, log=values.log, step=values.step)
    assert isinstance(values, FloatDistribution)
    return trial.suggest_float(name, values.low, values.high, log=values.log, step=values.step)


def _sampler(name: SamplerName, seed: int) -> optuna.samplers.BaseSampler:
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _cut_half_row(journal: Path, lock: JournalFileOpenLock) -> None:
    """Remove the half-written row of a worker that was killed, behind which the next row would be written.

    Raises:
        UserError: The journal is a link, which may lead to any file of the user's, or holds no whole row.
    """
    if journal.is_symlink():
        raise UserError(f"{journal}: is a link, where the sweep keeps a file; remove it")
    if not journal.is_file():
        return
    lock.acquire()
    try:
        with journal.open("r+b") as file:
            content = file.read()
            if content and b"\n" not in content:
                raise UserError(f"{journal}: holds no whole row; bring it back, or give another --study")
            file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _pruner(name: PrunerName, plan: SweepPlan) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner()
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=plan.most_epochs)
    return optuna.pruners.NopPruner()
