"""Worker of a sweep: it takes a trial, trains it, reports the result, and takes the next, until there is none."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Literal

from launcher.recipe.location import shown
from launcher.text import number as measured
from launcher.training.run_lock import RunLock
from launcher.training.stop_request import STOP_FILE, ask_to_stop
from launcher.tuning.sweep.child import Child, Epochs, final_value, why_stopped
from launcher.tuning.sweep.study import Claim, Study

LOOK_EVERY_SECONDS = 0.2
LEASE_LOOKED_AT_EVERY_SECONDS = 10.0
WAIT_SECONDS = 1.0
SECONDS_TO_HEAR = 2.0
"""Time to wait for a signal to this worker: a scheduler tells all processes to end, one after the other."""

End = Literal["done", "stopped", "interrupted"]


class Asked:
    """Request that this worker end: by Ctrl-C, or by a scheduler's signal."""

    def __init__(self) -> None:
        self.by: signal.Signals | None = None
        self.child: Child | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note the signals that arrive within the block."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                # A scheduler repeats its signal, which must not cut off what is still to be written.
                signal.signal(number, handler if self.by is None else signal.SIG_IGN)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.by == signal.SIGINT:  # a second Ctrl-C: leave at once
            if self.child is not None:
                self.child.kill()
            os._exit(130)
        self.by = signal.Signals(number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worker:
    """Worker with the settings by which it runs trials."""

    spec: str
    words: Sequence[str] = ()
    """Options of `train`, for each trial."""
    processes: int = 1
    waits: bool = True
    """True if the worker waits for the trials of others, so as to take over those that a dead one leaves."""
    report: Callable[[str], None]

    def work(
        self, study: Study, overrides_of: Callable[[Claim], list[str]], asked: Asked, after_each: Callable[[], None]
    ) -> End:
        """Train trials until there is none to take.

        `overrides_of` gives all overrides of a trial, and `after_each` is called when one has ended.
        """
        waiting = False
        while asked.by is None:
            claim = study.claim()
            if claim is None:
                others = study.at_work()
                if study.is_over or not self.waits:
                    return "done"
                if others and not waiting:
                    self.report(f"waiting for other workers ({study.kind} {', '.join(map(str, others))})")
                waiting = True
                time.sleep(WAIT_SECONDS)
                continue
            waiting = False
            try:
                if not self._train(study, claim, overrides_of(claim), asked):
                    break
            finally:
                claim.lease.release()
                with contextlib.suppress(OSError):  # only an empty folder goes, of a trial with nothing to train
                    claim.folder.rmdir()
            after_each()
        return "interrupted" if asked.by == signal.SIGINT else "stopped"

    def _train(self, study: Study, claim: Claim, overrides: list[str], asked: Asked) -> bool:
        """Train a trial, and return whether the worker goes on."""
        name, metric = f"{study.kind} {claim.number}", study.plan.metric
        own = study.plan.space.short(claim.values) or overrides[-1]
        if claim.is_new and (twin := study.take_over_from_twin(claim)) is not None:
            self.report(f"{name}: {own}: as {study.kind} {twin.number}, which had the same settings")
            return asked.by is None
        self.report(f"{name}: {'' if claim.is_new else 'continued: '}{own}  ({shown(claim.folder)})")
        begin = time.monotonic()
        pruned_at: tuple[int, float] | None = None
        while final_value(claim.folder, metric) is None:
            if not self._free(claim, asked):
                return False
            child = asked.child = Child([self.spec, *overrides, *self.words], claim.folder, self.processes)
            pruned_at = self._watch(study, claim, child, asked)
            asked.child = None
            if pruned_at is not None or final_value(claim.folder, metric) is not None:
                break
            if not claim.lease.is_held():
                self.report(f"{name}: another worker has it")
                return asked.by is None
            if child.code() == 2 and "another run " in child.output():
                continue  # a run that a dead worker had just started has taken the run dir first
            if self._stopped(child, claim, asked):
                self.report(f"{name}: saved and stopped; the same command continues")
                return False
            cause = child.cause()
            study.fail(claim, cause)
            self.report(f"{name}: failed: {cause}")
            return asked.by is None
        value = final_value(claim.folder, metric)
        if value is None:
            assert pruned_at is not None
            (claim.folder / STOP_FILE).unlink(missing_ok=True)
            epoch, reached = pruned_at
            study.prune(claim, f"{metric} {reached:.4g} after epoch {epoch} is not good enough to go on")
            self.report(f"{name}: pruned after epoch {epoch}, {metric} {measured(reached)}")
        elif math.isnan(value):
            study.fail(claim, f"{metric} is not a number")
            self.report(f"{name}: failed: {metric} is not a number")
        else:
            loss = final_value(claim.folder, "loss")
            study.finish(claim, value, math.nan if loss is None else loss)
            best = study.best() if claim.values else None  # among seeds none is the best
            tail = f"; best so far {measured(best.value)} of {study.kind} {best.number}" if best is not None else ""
            self.report(f"{name}: {metric} {measured(value)} after {time.monotonic() - begin:.0f} s{tail}")
        return asked.by is None

    def _watch(self, study: Study, claim: Claim, child: Child, asked: Asked) -> tuple[int, float] | None:
        """Watch a run until it has ended, and return the epoch and value at which it was pruned, or None."""
        epochs = Epochs(claim.folder, study.plan.metric)
        pruned_at: tuple[int, float] | None = None
        next_look = time.monotonic() + LEASE_LOOKED_AT_EVERY_SECONDS
        while True:
            over = child.code() is not None  # before reading: what was written until now is read below
            for epoch, value in epochs.new():
                study.report(claim, epoch, value)
                if pruned_at is None and not over and study.should_prune(claim):
                    pruned_at = epoch, value
            if over:
                return pruned_at
            if pruned_at is not None or asked.by is not None:
                child.ask_to_stop()
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + LEASE_LOOKED_AT_EVERY_SECONDS
                if not claim.lease.is_held():
                    child.kill()
                    return None
            time.sleep(LOOK_EVERY_SECONDS)

    def _free(self, claim: Claim, asked: Asked) -> bool:
        """Wait until the run of a dead worker has left the run dir, which it does by itself: it saves and stops.

        Return False if this worker is asked to stop meanwhile.
        """
        lock = RunLock(claim.folder)
        while lock.has_owner():
            ask_to_stop(claim.folder, "preempted")
            time.sleep(WAIT_SECONDS)
            if asked.by is not None:
                return False
        return True

    def _stopped(self, child: Child, claim: Claim, asked: Asked) -> bool:
        """Return whether the run ended because it, or this worker, was asked to stop from outside."""
        end = time.monotonic() + SECONDS_TO_HEAR
        by_signal = child.code() in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR1, 130)
        while by_signal and asked.by is None and time.monotonic() < end:
            time.sleep(LOOK_EVERY_SECONDS)
        if asked.by is not None:
            return True
        return child.code() in (0, 85, 130) and why_stopped(claim.folder) in ("time limit", "preempted", "interrupted")
