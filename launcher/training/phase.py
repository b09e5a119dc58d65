"""The beginning of a phase, the record of each of its epochs, and its end."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import nn

from launcher.text import number as measured
from launcher.training.best import Best, improves, is_better, mode_of
from launcher.training.checkpoint import State
from launcher.training.ddp import wrap
from launcher.training.feature_cache.frozen_part import frozen_part
from launcher.training.feature_cache.source import images_of
from launcher.training.frozen_proof import fingerprints, proof_of
from launcher.training.heap import give_back, keep_freed
from launcher.training.model import freeze, load_state, place, share_tensors
from launcher.training.optimizer import WeightAverage, build_optimizer, load_optimizer_state
from launcher.training.preflight import ResolvedPhase
from launcher.training.run import PhaseState, Run
from launcher.training.run_checkpoint import add_proof, written
from launcher.training.trackers import log_epoch


def begin_phase(run: Run, resolved: ResolvedPhase, resumed: State | None) -> PhaseState:
    """Return the state of a phase: a new copy of the network with the phase's rules, wrapped anew, and a new optimizer.

    Unfreezing works only because the network is wrapped anew: DDP synchronises only parameters that were trainable when
    it was built (Lightning-AI/pytorch-lightning#20340). `resumed` is the checkpoint that the run continues from, if
    any.
    """
    accelerator, recipe = run.accelerator, run.recipe
    model = copy.deepcopy(run.model)
    model = place(model, torch.device("cpu"))
    freeze(model, resolved.lr_scales)
    if recipe.sync_batchnorm and resolved.phase.norm_statistics == "update":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    frozen = fingerprints(model, model.state_dict().keys() - resolved.changing)
    model = model.to(accelerator.device)
    prefix = frozen_part(accelerator, model, resolved, recipe, run.prepared.preprocessing.image_size)
    if isinstance(prefix, str):
        run.screen.line(f"{resolved.phase.name}: the whole network is computed in each step: {prefix}", style="yellow")
        prefix = None
    if prefix is not None:
        frozen |= prefix.fingerprints()
    wrapped = wrap(run, model, prefix)
    if accelerator.device.type == "cpu":  # on a GPU only the phase's copy is on the device
        # Not before: with two processes the device is "cpu:0", and moving the model to it copies the tensors.
        share_tensors(run.model, model)
    optimizer = accelerator.prepare_optimizer(build_optimizer(recipe.optim, model, resolved.lr_scales))
    average = WeightAverage(model, set(resolved.changing), recipe.ema_decay) if recipe.ema_decay else None
    if resumed is not None:
        load_optimizer_state(optimizer.optimizer, resumed.optimizer["state"])
        if accelerator.scaler is not None and resumed.optimizer["scaler"] is not None:
            accelerator.scaler.load_state_dict(resumed.optimizer["scaler"])
        if average and resumed.ema is not None:
            average.load(resumed.ema)
    add_proof(run, resolved, "begins", proof_of(frozen))
    give_back()
    if accelerator.device.type == "cpu":
        # A prefix works in small chunks, and the tensors behind it are small: keeping freed memory would cost 25 MB for
        # nothing.
        keep_freed(prefix is None)
    return PhaseState(resolved, model, wrapped, optimizer, average, images_of(run, resolved), prefix, frozen)


BestOf = Literal["run", "phase"]


def record(run: Run, state: PhaseState, metrics: dict[str, float], broken: str | None) -> BestOf | None:
    """Write the row of an epoch and update the best results.

    Return whether this epoch is the best of the run so far, or of the phase, or None if it is neither. `broken` is the
    reason why it cannot be the best, or None.
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


def end_phase(run: Run, state: PhaseState) -> None:
    """Load the phase's last weights into the run's model, or with patience the best. All processes must call this."""
    progress, phase = run.progress, state.resolved.phase
    best = progress.phase_best
    state.source.close()
    written(run)
    if phase.patience is not None and best is not None and best.step != progress.step:
        checkpoints = run.rundir.checkpoints
        load_state(run.model, checkpoints.load(checkpoints.of_step(best.step)).model)
        run.screen.line(f"weights of epoch {best.epoch} restored ({best.metric} {measured(best.value)})")
    else:
        load_state(run.model, state.model.state_dict())  # changes nothing if the two models share their tensors
    run.accelerator.wait_for_everyone()  # the next save may prune what another process is still reading
    run.accelerator.free_memory()
    progress.phase += 1
    progress.epoch, progress.step_in_epoch, progress.epochs_without_better = 0, 0, 0
    progress.phase_best, progress.phase_ended = None, False
