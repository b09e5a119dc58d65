"""What lives as long as a run or a phase, and how it begins, is recorded, is saved and ends."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader

from launcher.errors import UserError
from launcher.recipe.recipe import Recipe
from launcher.text import number as measured
from launcher.training.agreement import agreed
from launcher.training.checkpoint import Progress, State
from launcher.training.command import Command
from launcher.training.evaluating import KeptOutputs
from launcher.training.features.phase import Frozen, Source, frozen_part, pictures
from launcher.training.frozen import Proof, fingerprints, proof_of, prove
from launcher.training.heap import give_back, keep_freed
from launcher.training.images import Batch, end_workers
from launcher.training.interruption import Interruption
from launcher.training.lock import RunLock
from launcher.training.losses import Unread, read_losses
from launcher.training.model import (
    TransferModel,
    cpu_state,
    freeze,
    load_state,
    norm_layers_that_train,
    place,
    share_tensors,
)
from launcher.training.nonfinite import check_weights
from launcher.training.optimizing import WeightAverage, build_optimizer, load_optimizer_state, optimizer_state
from launcher.training.preparation import Prepared, ResolvedPhase
from launcher.training.progress import Screen
from launcher.training.rundir import MetricsLog, RunDir
from launcher.training.sampling import TrainingKeys
from launcher.training.stopping import Best, improves, is_better, mode_of
from launcher.training.tracking import log_epoch
from launcher.training.watchdog import Watchdog
from launcher.training.wrapping import wrap
from launcher.training.writing import BackgroundWriter

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


@dataclasses.dataclass
class Run:
    """What lives as long as a run."""

    accelerator: Accelerator
    prepared: Prepared
    rundir: RunDir
    screen: Screen
    progress: Progress
    metrics: MetricsLog | None
    """On the main process only."""
    model: TransferModel
    """The network between phases, on the CPU; each phase trains a copy."""
    keys: TrainingKeys
    train_loader: DataLoader[Batch]
    val_loader: DataLoader[Batch]
    val_batch_size: int
    num_workers: int
    """Data workers of this process."""
    num_local_processes: int
    """On this machine."""
    lock: RunLock | None
    """On the main process only."""
    interruption: Interruption
    watchdog: Watchdog
    writer: BackgroundWriter
    command: Command
    kept: KeptOutputs | None = None
    """On the main process only."""
    parts: int | None = None
    """How many parts each micro-batch is computed in, one after the other; more after a step that ran out of memory.
    None: without `--micro-batch auto`, such a step ends the run."""
    last_save: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def recipe(self) -> Recipe:
        return self.prepared.recipe

    def close(self) -> None:
        """Leave everything as it may be left; safe to call in the middle of a failure."""
        # All of it, the last one first, whatever fails: torch raises where a data worker was killed, at any moment.
        with contextlib.ExitStack() as rest:
            for loader in (self.val_loader, self.train_loader):
                rest.callback(end_workers, loader)
            rest.callback(_close, self.screen.close)
            if self.lock:
                rest.callback(_close, self.lock.release)
            if self.metrics:
                rest.callback(_close, self.metrics.close)
            rest.callback(self.writer.join)

    def save_is_due(self) -> bool:
        """Whether checkpoint_every_minutes have passed; on the main process, whose clock counts."""
        minutes = self.recipe.checkpoint_every_minutes
        due = minutes is not None and time.monotonic() - self.last_save > 60 * minutes
        return due and self.accelerator.is_main_process

    def monitored(self, resolved: ResolvedPhase) -> str:
        """The metric that decides what is best; of the averaged weights where there are some."""
        name = resolved.phase.monitor or self.prepared.task.monitor
        return f"ema_{name}" if self.recipe.ema_decay else name


def _close(close: Callable[[], None]) -> None:
    # On a full disk what is still to be written fails once more; what counts was written before each checkpoint.
    with contextlib.suppress(OSError):
        close()


@dataclasses.dataclass
class PhaseState:
    """What lives as long as a phase."""

    resolved: ResolvedPhase
    model: nn.Module
    """The trained copy; inside `wrapped`."""
    wrapped: nn.Module
    """What is called in training: through it the gradients of all processes are averaged."""
    optimizer: AcceleratedOptimizer
    average: WeightAverage | None
    source: Source
    """Of batches: pictures, or what the frozen prefix makes of them."""
    prefix: Frozen | None
    """What of the network is frozen up to the first thing that trains; None: nothing, or it could not be cut off."""
    frozen: dict[str, str]
    """Hashes of all that the phase must not change."""
    scaler_skips: int = 0
    """Steps in a row that fp16's gradient scaler has skipped."""
    unread: list[Unread] = dataclasses.field(default_factory=list)


def begin_phase(run: Run, resolved: ResolvedPhase, resumed: State | None) -> PhaseState:
    """A fresh copy of the network with the phase's rules, wrapped anew, and a fresh optimizer.

    Wrapping anew is what makes unfreezing work: DDP synchronises only what was trainable when it was built
    (Lightning-AI/pytorch-lightning#20340). `resumed` is the checkpoint that the run continues from, if any.
    """
    accelerator, recipe = run.accelerator, run.recipe
    model = copy.deepcopy(run.model)
    model = place(model, torch.device("cpu"))
    freeze(model, resolved.lr_scales)
    if recipe.sync_batchnorm and resolved.phase.norm_statistics == "update":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    frozen = fingerprints(model, model.state_dict().keys() - resolved.changing)
    model = model.to(accelerator.device)
    prefix = frozen_part(accelerator, model, resolved, recipe, run.prepared.preprocessing.image_size)
    if isinstance(prefix, str):
        run.screen.line(f"{resolved.phase.name}: the whole network is computed in each step: {prefix}", style="yellow")
        prefix = None
    if prefix is not None:
        frozen |= prefix.fingerprints()
    wrapped = wrap(run, model, resolved, prefix)
    if accelerator.device.type == "cpu":  # otherwise the phase's copy alone is on the device
        share_tensors(run.model, model)  # only now: with two processes the device is "cpu:0", and moving to it copies
    optimizer = accelerator.prepare_optimizer(build_optimizer(recipe.optim, model, resolved.lr_scales))
    average = WeightAverage(model, set(resolved.changing), recipe.ema_decay) if recipe.ema_decay else None
    if resumed is not None:
        load_optimizer_state(optimizer.optimizer, resumed.optimizer["state"])
        if accelerator.scaler is not None and resumed.optimizer["scaler"] is not None:
            accelerator.scaler.load_state_dict(resumed.optimizer["scaler"])
        if average and resumed.ema is not None:
            average.load(resumed.ema)
    _write_proof(run, resolved, "begins", proof_of(frozen))
    give_back()
    if accelerator.device.type == "cpu":
        # A prefix works in small pieces, and what is behind it is small: 25 MB more for nothing.
        keep_freed(prefix is None)
    return PhaseState(resolved, model, wrapped, optimizer, average, pictures(run, resolved), prefix, frozen)


def _write_proof(run: Run, resolved: ResolvedPhase, when: str, proof: Proof) -> None:
    if run.accelerator.is_main_process:
        row = {"number": resolved.number, "phase": resolved.phase.name, "when": when, "step": run.progress.step}
        run.rundir.add_proof(row | {"processes": run.accelerator.num_processes, **dataclasses.asdict(proof)})


BestOf = Literal["run", "phase"]


def record(run: Run, state: PhaseState, metrics: dict[str, float], broken: str | None) -> BestOf | None:
    """Write the row of an epoch and keep what is best. Return what this epoch is the best of so far, if anything.

    `broken` says why it can never be, where it cannot.
    """
    progress, resolved = run.progress, state.resolved
    metric = run.monitored(resolved)
    mode = mode_of(metric.removeprefix("ema_"), run.prepared.task.monitor, run.prepared.task.monitor_mode)
    loss = metrics.get("ema_loss" if metric.startswith("ema_") else "loss", math.nan)
    value = math.nan if broken else metrics[metric]
    if not math.isfinite(value):
        why = broken or f"{metric} is {value} on the validation images"
        run.screen.line(f"epoch {progress.epoch + 1} is not taken for the best: {why}", style="yellow")
    new = Best(
        metric, value, progress.step, resolved.phase.name, progress.epoch + 1, loss if math.isfinite(loss) else None
    )
    better_metric = improves(new, progress.phase_best, mode)
    progress.epochs_without_better = 0 if better_metric else progress.epochs_without_better + 1
    is_best = is_better(new, progress.phase_best, mode)
    if is_best:
        progress.phase_best = new
    is_best_of_run = is_better(new, progress.run_best, mode)
    if is_best_of_run:
        progress.run_best = new
    row = {"event": "epoch", "phase": resolved.phase.name, "epoch": progress.epoch + 1, "step": progress.step}
    row |= {"train_loss": progress.train_loss, "best": is_best}
    if run.metrics:
        run.metrics.write(row | {"val": metrics})
    log_epoch(run, resolved, metrics)
    return "run" if is_best_of_run else "phase" if is_best else None


def average_norm_statistics(run: Run, state: PhaseState) -> None:
    """Give all processes the mean of their BatchNorm statistics: with "update", each has seen its own samples."""
    accelerator, phase = run.accelerator, state.resolved.phase
    if accelerator.num_processes == 1 or phase.norm_statistics == "keep":
        return
    for layer in norm_layers_that_train(state.model).values():
        for buffer in layer.buffers(recurse=False):
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer.clone(), reduction="mean"))


def save(run: Run, state: PhaseState) -> None:
    """A checkpoint of this very moment, after the proof that it is sound. Called by all processes.

    The state is copied here and written in the background.
    """
    run.watchdog.beat("saving a checkpoint")
    read_losses(run, state)
    check_weights(run, state)
    average_norm_statistics(run, state)
    more = state.prefix.fingerprints() if state.prefix else {}
    proof = prove(run.accelerator, state.model, state.frozen, state.resolved.phase.name, more)
    _write_proof(run, state.resolved, "checkpoint", proof)
    give_back()
    run.last_save = time.monotonic()
    with agreed(run.accelerator):
        if run.accelerator.is_main_process:
            if not run.rundir.path.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(run.rundir.path))
            check_owner(run)
            run.writer.submit(_snapshot(run, state))
    run.interruption.seconds_of_a_save = run.writer.seconds


def check_owner(run: Run) -> None:
    """Raise UserError where another start has taken the run dir over: on the main process, before it writes."""
    if run.lock and not run.lock.is_held():
        raise UserError(f"{run.rundir.path}: another start of this run has taken it over; this one ends")


def _snapshot(run: Run, state: PhaseState) -> State:
    if run.metrics:
        run.metrics.sync()
        run.progress.metrics_rows = run.metrics.rows
    past = run.prepared.phases[: state.resolved.number + 1]
    changed = frozenset().union(*(phase.changing for phase in past))
    scaler = run.accelerator.scaler
    average = None
    if state.average is not None:
        average = {name: value.to("cpu", copy=True) for name, value in state.average.values.items()}
    return State(
        progress=copy.deepcopy(run.progress),
        model=cpu_state(state.model, changed),
        optimizer={
            "state": optimizer_state(state.optimizer.optimizer),
            "scaler": None if scaler is None else scaler.state_dict(),
        },
        ema=average,
        outputs=run.kept.outputs if run.kept and run.kept.step == run.progress.step else None,
    )


def written(run: Run) -> None:
    """Returns when the last checkpoint is on the disk, for all processes to read."""
    with agreed(run.accelerator):
        if run.accelerator.is_main_process:
            run.writer.wait()


def end_phase(run: Run, state: PhaseState) -> None:
    """Take the phase's weights into the run: the last, or with patience the best. Called by all processes."""
    progress, phase = run.progress, state.resolved.phase
    best = progress.phase_best
    state.source.close()
    written(run)
    if phase.patience is not None and best is not None and best.step != progress.step:
        checkpoints = run.rundir.checkpoints
        load_state(run.model, checkpoints.load(checkpoints.of_step(best.step)).model)
        run.screen.line(f"weights of epoch {best.epoch} restored ({best.metric} {measured(best.value)})")
    else:
        load_state(run.model, state.model.state_dict())  # where the two share their tensors it copies nothing
    run.accelerator.wait_for_everyone()  # the next save may prune what another process is still reading
    run.accelerator.free_memory()
    progress.phase += 1
    progress.epoch, progress.step_in_epoch, progress.epochs_without_better = 0, 0, 0
    progress.phase_best, progress.phase_ended = None, False
