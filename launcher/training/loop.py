"""The visible loop: run -> train -> run_phase -> train_epoch -> train_step -> accumulate, and evaluate.

A start of a run does the first of these that applies:
1. If the run is already finished, say so and exit successfully; if its end was cut short, do what is left of it.
2. If there is a complete checkpoint in the run dir, continue from the newest.
3. Otherwise begin with the backbone's pretrained weights and a new head.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import torch

from launcher.recipe.loading import LoadedRecipe
from launcher.text import number as measured
from launcher.text import plural
from launcher.training.accelerator import start_accelerator
from launcher.training.checkpoint import State
from launcher.training.closed_form import start_head
from launcher.training.data_order import seed_micro_step
from launcher.training.evaluation import metrics_of, outputs_of
from launcher.training.failures import surroundings_reported
from launcher.training.feature_cache.loader import FeatureBatch
from launcher.training.feature_cache.populate import with_stored_features
from launcher.training.final import final_outputs, finish, keep_outputs
from launcher.training.heap import give_back
from launcher.training.images import Batch, timed
from launcher.training.input_wait import report_waiting
from launcher.training.launch import Launch
from launcher.training.losses import read_losses
from launcher.training.model import in_closed_form, set_train_mode
from launcher.training.nonfinite import broken_epoch
from launcher.training.optimizer import set_learning_rates
from launcher.training.out_of_memory import accumulate_what_fits, can_redo_steps
from launcher.training.phase import begin_phase, end_phase, record
from launcher.training.preflight import ResolvedPhase
from launcher.training.progress import Speed
from launcher.training.run import PhaseState, Run, Unread
from launcher.training.run_checkpoint import average_norm_statistics, save, written
from launcher.training.run_dir import RunDir
from launcher.training.setup import begin_run, say_finished
from launcher.training.step import clipped, forward_backward, inputs_of
from launcher.training.stop import write_marker
from launcher.training.stop_request import Reason, StoppedError
from launcher.training.trackers import log_speed

LOSSES_READ_EVERY_STEPS = 10
"""Number of steps whose losses are read at once, because reading a loss waits for the device."""


Afterwards = Callable[[Run, torch.Tensor | None], None]
"""A function that the main process calls with a run that has ended and the outputs of its final weights.

The outputs are those on the validation images; they are None unless `Launch.evaluate_final`, or if they could not be
computed.
"""


Left = Callable[[RunDir], list[str]]
"""A function that names the files that the end of a run should have left in its run dir, but has not."""


def run(
    loaded: LoadedRecipe,
    launch: Launch,
    afterwards: Afterwards = lambda run, outputs: None,
    left: Left = lambda rundir: [],
) -> None:
    """Train a recipe to its end, from the position recorded in the run dir.

    Raise UserError for problems that the user can fix.
    """
    rundir = RunDir(launch.run_dir or loaded.default_run_dir)
    accelerator = start_accelerator(loaded.recipe, launch, rundir.path)
    try:
        if rundir.finished and say_finished(accelerator, rundir, loaded, launch, left):
            return
        with surroundings_reported(rundir.path):
            begun, resumed = begin_run(accelerator, rundir, loaded, launch)
            accelerator = begun.accelerator
            train(begun, resumed, loaded, launch, afterwards)
    finally:
        # A process that exits while gloo's threads are running is aborted now and then ("terminate called without an
        # active exception"), and its launcher then reports the run as failed.
        accelerator.end_training()


def train(run: Run, resumed: State | None, loaded: LoadedRecipe, launch: Launch, afterwards: Afterwards) -> None:
    """Train all phases from the run's position on, then finish the run. Raise StoppedError if asked to stop before."""
    outputs: torch.Tensor | None = None
    try:
        with run.interruption, run.watchdog:
            for resolved in run.prepared.phases[run.progress.phase :]:
                run_phase(run, resolved, resumed)
                resumed = None
            finish(run)
            if launch.evaluate_final:
                outputs = final_outputs(run)
        if run.accelerator.is_main_process:
            afterwards(run, outputs)
    except StoppedError as stopped:
        signal_name = f" ({run.interruption.signal_name})" if run.interruption.signal_name else ""
        run.screen.line(f"{stopped.reason}{signal_name}: saved at step {run.progress.step}; the same command continues")
        raise
    finally:
        run.close()


def run_phase(run: Run, resolved: ResolvedPhase, resumed: State | None) -> None:
    """Train one phase to its end, which comes after all its epochs, or earlier if it has patience."""
    progress, phase = run.progress, resolved.phase
    state = begin_phase(run, resolved, resumed)
    run.screen.phase_begins(run.prepared, resolved)
    if not progress.phase_ended:
        begin = time.perf_counter()
        try:
            if state.prefix is not None:
                state.source = with_stored_features(run, resolved, state.prefix, state.source)
            if progress.step == 0 and in_closed_form(run.recipe.head):
                start_head(run, state)
        except StoppedError as stopped:
            leave(run, stopped.reason)
        progress.seconds += time.perf_counter() - begin
    advised = False
    while not progress.phase_ended:
        begin = time.perf_counter()
        speed = train_epoch(run, state)
        advised = advised or report_waiting(run, speed, time.perf_counter() - begin)
        try:
            metrics, outputs, broken = evaluate(run, state)
        except StoppedError as stopped:
            stop(run, state, stopped.reason)
        seconds = time.perf_counter() - begin
        progress.seconds += seconds
        if run.accelerator.is_main_process:
            how_fast = dataclasses.asdict(speed) if speed else {}
            row = {"number": resolved.number, "phase": phase.name, "epoch": progress.epoch + 1, "seconds": seconds}
            run.rundir.add_timing(row | how_fast)
        best_of = record(run, state, metrics, broken)
        log_speed(run, speed, seconds)
        keep_outputs(run, outputs)
        run.screen.epoch_ends(
            resolved, progress.epoch + 1, progress.train_loss, metrics, speed, seconds, run.monitored(resolved), best_of
        )
        progress.epoch, progress.step_in_epoch = progress.epoch + 1, 0
        progress.loss_sum, progress.loss_samples = 0.0, 0
        stopped_early = phase.patience is not None and progress.epochs_without_better >= phase.patience
        progress.phase_ended = stopped_early or progress.epoch == phase.epochs
        if progress.phase_ended and all(name.startswith("head.") for name in resolved.changing):
            progress.head_step = progress.step
        save(run, state)
        if stopped_early and phase.patience is not None and progress.epoch < phase.epochs:
            patience = plural(phase.patience, "epoch", spec="")
            run.screen.line(f"{phase.name} ends early: no better {run.monitored(resolved)} in {patience}")
    end_phase(run, state)


def train_epoch(run: Run, state: PhaseState) -> Speed | None:
    """Train the rest of the current epoch, and return its speed, or None if nothing was left of it."""
    resolved, progress = state.resolved, run.progress
    first_step, steps = progress.step_in_epoch, resolved.steps_per_epoch
    title = f"{resolved.phase.name} {progress.epoch + 1}/{resolved.phase.epochs}"
    run.screen.epoch_begins(title, steps, first_step)
    set_train_mode(state.model, resolved.phase.norm_statistics)
    run.keys.start(resolved.first_epoch + progress.epoch, first_step)
    waited: list[float] = []
    batches = timed(run.watchdog.reading(state.source.train), waited)
    begin, images, shown, speed = time.perf_counter(), 0, "", None
    for step in range(first_step, steps):
        images += run.keys.taken(step)
        run.watchdog.beat(f"step {progress.step + 1}")
        step_begin = time.perf_counter()
        train_step(run, state, batches, step)
        at_end = step + 1 == steps
        if len(state.unread) >= LOSSES_READ_EVERY_STEPS or at_end:
            loss, seconds = read_losses(run, state), time.perf_counter() - begin
            speed = Speed(images / seconds, sum(waited) / seconds)
            lr, pace = state.optimizer.param_groups[0]["lr"], speed.shown()
            shown = f"loss {measured(loss)}  lr {lr:.2e}  {pace['images/s']} images/s  data wait {pace['data wait']}"
        run.screen.step(title, step + 1, steps, shown)
        if step == first_step + 1:
            run.interruption.seconds_of_steps.pop()  # the first step of an epoch may hold starts and warm-up
        run.interruption.seconds_of_steps.append(time.perf_counter() - step_begin)
        reason, save_is_due = run.interruption.agree(run.save_is_due())
        if reason:
            stop(run, state, reason)
        every = run.recipe.checkpoint_every_steps
        if (save_is_due or (every and progress.step % every == 0)) and not at_end:
            save(run, state)
    next(batches, None)  # exhausts the loader, so that its workers are ready for the next epoch
    return speed


def train_step(run: Run, state: PhaseState, batches: Iterator[Batch | FeatureBatch], step_in_epoch: int) -> None:
    """Take one optimizer step with the mean gradient over the samples of the global batch, however it is split."""
    recipe, progress, resolved = run.recipe, run.progress, state.resolved
    phase_step = progress.epoch * resolved.steps_per_epoch + step_in_epoch
    lr = run.prepared.base_lr * recipe.schedule.scale(phase_step, resolved.steps, resolved.steps_per_epoch)
    set_learning_rates(state.optimizer, lr)

    gradient_of = accumulate_what_fits if can_redo_steps(run, state) else accumulate
    loss_sum = gradient_of(run, state, batches, step_in_epoch)
    row = {"event": "step", "phase": resolved.phase.name, "epoch": progress.epoch + 1, "step": progress.step + 1}
    row |= {"lr": lr, "samples": run.keys.taken(step_in_epoch)}
    verdict = clipped(run, state, step_in_epoch)
    if verdict.sound:
        state.optimizer.step()
        if state.average:
            state.average.update(phase_step)
        state.unread.append(Unread(row, loss_sum, step_in_epoch, verdict.finite))
    else:
        state.unread.append(Unread(row | {"skipped": True}, torch.zeros_like(loss_sum), step_in_epoch))
    state.optimizer.zero_grad(set_to_none=True)
    progress.step += 1
    progress.step_in_epoch = step_in_epoch + 1


def accumulate(
    run: Run, state: PhaseState, batches: Iterator[Batch | FeatureBatch], step_in_epoch: int
) -> torch.Tensor:
    """Compute a step's gradient, averaged over the processes, and return this process's sum of losses.

    The gradient is accumulated in the parameters.
    """
    accelerator, progress = run.accelerator, run.progress
    taken = run.keys.taken(step_in_epoch)
    micro_batches = run.keys.micro_batches(step_in_epoch)
    loss_sum = torch.zeros((), device=accelerator.device, dtype=torch.float64)
    for micro_step, (first, end) in enumerate(micro_batches):
        inputs, targets = inputs_of(run, state, next(batches))
        seed_micro_step(run.recipe.seed, progress.step, accelerator.process_index, micro_step)
        is_last = micro_step == len(micro_batches) - 1
        with contextlib.nullcontext() if is_last else accelerator.no_sync(state.wrapped):
            loss_sum += forward_backward(run, state, inputs, targets, taken, is_empty=first == end)
    return loss_sum


def stop(run: Run, state: PhaseState, reason: Reason) -> NoReturn:
    """Save a checkpoint of this moment and leave the loop. All processes must call this."""
    save(run, state)
    written(run)
    leave(run, reason)


def leave(run: Run, reason: Reason) -> NoReturn:
    """Leave the loop after everything has been saved. All processes must call this."""
    if run.accelerator.is_main_process:
        write_marker(run.rundir.path, reason, run.interruption.signal_name, run.progress.step)
    # The marker comes first: once a process has exited, its launcher may end the others.
    run.accelerator.wait_for_everyone()
    raise StoppedError(reason)


def evaluate(run: Run, state: PhaseState) -> tuple[dict[str, float], torch.Tensor, str | None]:
    """Evaluate the weights and, if one is kept, their average on the validation images.

    Return the metrics, those of the average under "ema_*"; the outputs of the weights that `final/` would hold; and the
    reason why these weights cannot be the best, or None.

    Raise StoppedError if the run is asked to stop meanwhile. Nothing of the evaluation is kept in that case: the state
    at the end of the epoch's training is to be saved.
    """
    task, val = run.prepared.task, run.prepared.splits.val
    model = run.accelerator.unwrap_model(state.wrapped, keep_fp32_wrapper=True)
    average_norm_statistics(run, state)
    prefix = state.prefix.of if state.prefix else None

    def outputs_now() -> torch.Tensor:
        sizes = len(val), task.num_outputs, run.val_batch_size
        batches = run.watchdog.reading(state.source.val)
        return outputs_of(run.accelerator, model, batches, *sizes, lambda: run.check_in("evaluation"), prefix)

    outputs = outputs_now()
    broken = broken_epoch(run, state, outputs)
    metrics = metrics_of(task, outputs, val)
    give_back()
    if state.average:
        with state.average.applied():
            outputs = outputs_now()
        broken = broken or broken_epoch(run, state, outputs)
        metrics |= {f"ema_{name}": value for name, value in metrics_of(task, outputs, val).items()}
    return metrics, outputs, broken
