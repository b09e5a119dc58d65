"""Steps of a learning rate range test: those of a real phase but for its schedule, with nothing kept of them."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.compat import end_workers
from launcher.recipe.head_modules import LinearHead
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.part import part
from launcher.text import number as measured
from launcher.training.accelerator import start_accelerator
from launcher.training.closed_form import start_head
from launcher.training.feature_cache.populate import with_stored_features
from launcher.training.launch import Launch
from launcher.training.loop import train_step
from launcher.training.model import cpu_state, in_closed_form, load_state, set_train_mode
from launcher.training.phase import begin_phase
from launcher.training.run import PhaseState, Run
from launcher.training.run_dir import RunDir
from launcher.training.setup import begin_run
from launcher.training.stop_request import StoppedError
from launcher.tuning.lr_finder.trace import DIVERGED, LEAST_BEFORE_DIVERGED, Average, Range, Start, Trace, scales_of


@part
class Rates:
    """Schedule that gives step k of a phase its k-th factor."""

    scales: tuple[float, ...]

    def scale(self, step: int, steps: int, steps_per_epoch: int) -> float:
        return self.scales[step]


def range_test(loaded: LoadedRecipe, launch: Launch, rates: Range, numbers: Sequence[int]) -> list[Trace] | None:
    """Test the phases of `numbers`; return their traces on the main process, and None on the others.

    Raises:
        UserError: The reasons are the same as for `run`.
        StoppedError: The test is asked to stop.
    """
    recipe, lrs = loaded.recipe, rates.lrs()
    # The average of weights and the trackers are left out: they change no loss.
    trial = dataclasses.replace(
        recipe, schedule=Rates(scales=scales_of(recipe, lrs)), ema_decay=None, trackers=(), on_nonfinite="stop"
    )
    with tempfile.TemporaryDirectory(prefix="find-lr-") as folder:
        rundir = RunDir(Path(folder))
        accelerator = start_accelerator(trial, launch, rundir.path)
        try:
            shown = f"learning rates of {loaded.path}"
            run, _ = begin_run(accelerator, rundir, dataclasses.replace(loaded, recipe=trial), launch, trial=shown)
            try:
                with run.interruption, run.watchdog:
                    traces = list(_traces(run, lrs, numbers))
            finally:
                run.close()
            return traces if run.accelerator.is_main_process else None
        finally:
            accelerator.end_training()


def _traces(run: Run, lrs: Sequence[float], numbers: Sequence[int]) -> Iterator[Trace]:
    phases = run.prepared.phases
    # On CPUs, a phase's network shares its memory with the run's, so its state is copied.
    before = cpu_state(run.model)
    head: dict[str, Any] | None = None
    held_out_loss = 0.0
    if any(number > 0 for number in numbers) and isinstance(run.model.head, LinearHead):
        head, held_out_loss = _head_in_closed_form(run)
        load_state(run.model, before)
    for number in numbers:
        resolved = phases[number]
        state = begin_phase(run, resolved, None)
        run.screen.line(
            f"phase {number + 1}/{len(phases)} {resolved.phase.name}: {len(lrs)} steps, optim.lr from {lrs[0]:.3g} "
            f"to {lrs[-1]:.3g}"
        )
        _store_features(run, state)
        start: Start = "recipe"
        least_loss = 0.0
        if number == 0 and in_closed_form(run.recipe.head):
            least_loss = start_head(run, state)
        elif number > 0 and head is not None:
            load_state(state.model.head, head)  # type: ignore[arg-type]
            start, least_loss = "closed form", held_out_loss
        elif number > 0:
            start = "new head"
        try:
            yield _trace(run, state, lrs, start, least_loss)
        finally:
            _forget(run, state)
        load_state(run.model, before)


def _head_in_closed_form(run: Run) -> tuple[dict[str, Any], float]:
    """Return the state of a head in closed form, on the CPU, and its loss on held-out images.

    It stands in for the head that the phases before would have trained.
    """
    untouched = [
        resolved
        for resolved in run.prepared.phases
        if all(scale == 0 for name, scale in resolved.lr_scales.items() if name.startswith("backbone."))
    ]
    # If a phase freezes the backbone, its features are stored, also for the run that follows.
    state = begin_phase(run, (untouched or run.prepared.phases)[0], None)
    _store_features(run, state)
    loss = start_head(run, state)
    head = cpu_state(state.model.head)  # type: ignore[arg-type]
    _forget(run, state)
    return head, loss


def _store_features(run: Run, state: PhaseState) -> None:
    """Store features, unless they would be those of validation images alone, which a range test does not use."""
    if state.prefix is not None and state.resolved.fixed_views is not None:
        state.source = with_stored_features(run, state.resolved, state.prefix, state.source)


def _forget(run: Run, state: PhaseState) -> None:
    state.source.close()
    end_workers(run.train_loader)
    run.accelerator.free_memory()


def _trace(run: Run, state: PhaseState, lrs: Sequence[float], start: Start, least_loss: float) -> Trace:
    """Take training steps at `lrs`, one after the other, through as many epochs as they need, and trace them."""
    resolved, average, lowest = state.resolved, Average(), math.inf
    title = f"{resolved.phase.name} learning rates"
    run.screen.epoch_begins(title, len(lrs), 0)
    losses: list[float] = []
    diverged = False
    try:
        for batches, step in _steps(run, state, len(lrs)):
            run.watchdog.beat(f"{title}, step {len(losses) + 1}")
            train_step(run, state, batches, step)
            loss = _loss_of_step(run, state)
            if not math.isfinite(loss):
                diverged = True
                break
            smoothed = average.add(loss)
            losses.append(loss)
            done = len(losses)
            run.screen.step(title, done, len(lrs), f"loss {measured(smoothed)}  lr {lrs[done - 1]:.2e}")
            lowest = min(lowest, smoothed)
            if done > LEAST_BEFORE_DIVERGED * len(lrs) and smoothed - lowest > DIVERGED * max(abs(lowest), least_loss):
                diverged = True
                break
            reason, _ = run.interruption.agree()
            if reason:
                raise StoppedError(reason)
    finally:
        run.screen.end_bar()
    return Trace(
        number=resolved.number,
        phase=resolved.phase.name,
        start=start,
        lr_scales=tuple(group.lr_scale for group in resolved.groups),
        lrs=tuple(lrs[: len(losses)]),
        losses=tuple(losses),
        least_loss=least_loss,
        steps=len(lrs),
        diverged=diverged,
    )


def _steps(run: Run, state: PhaseState, count: int) -> Iterator[tuple[Iterator[Any], int]]:
    """Yield `count` times the batches and the step within the epoch, in the order in which the phase takes them."""
    resolved, progress, done = state.resolved, run.progress, 0
    progress.epoch, progress.step_in_epoch = 0, 0
    while done < count:
        run.keys.start(resolved.first_epoch + progress.epoch, 0)
        set_train_mode(state.model, resolved.phase.norm_statistics)
        batches = iter(state.source.train)
        for step in range(min(resolved.steps_per_epoch, count - done)):
            yield batches, step
            done += 1
        if done < count:
            next(batches, None)  # lets the loader reach its end
        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0


def _loss_of_step(run: Run, state: PhaseState) -> float:
    """Return the loss of the last step over all processes, summed in their order, so that all see the same value."""
    (step,) = state.unread
    state.unread.clear()
    if step.finite is not None and not bool(step.finite):
        return math.nan
    return float(sum(run.accelerator.gather(step.loss_sum.reshape(1)).tolist())) / int(step.row["samples"])
