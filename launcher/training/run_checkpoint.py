"""The saving of a run's current state, after the proof that it is sound."""

from __future__ import annotations

import copy
import dataclasses
import errno
import os
import time

from launcher.errors import UserError
from launcher.training.checkpoint import State
from launcher.training.collectives import raised_on_all
from launcher.training.frozen_proof import Proof, prove
from launcher.training.heap import give_back
from launcher.training.losses import read_losses
from launcher.training.model import cpu_state, norm_layers_that_train
from launcher.training.nonfinite import check_weights
from launcher.training.optimizer import optimizer_state
from launcher.training.preflight import ResolvedPhase
from launcher.training.run import PhaseState, Run


def add_proof(run: Run, resolved: ResolvedPhase, when: str, proof: Proof) -> None:
    """Append a proof to proofs.jsonl on the main process; `when` names the moment."""
    if run.accelerator.is_main_process:
        row = {"number": resolved.number, "phase": resolved.phase.name, "when": when, "step": run.progress.step}
        run.rundir.add_proof(row | {"processes": run.accelerator.num_processes, **dataclasses.asdict(proof)})


def average_norm_statistics(run: Run, state: PhaseState) -> None:
    """Give all processes the mean of their BatchNorm statistics, as with "update" each has seen its own samples."""
    accelerator, phase = run.accelerator, state.resolved.phase
    if accelerator.num_processes == 1 or phase.norm_statistics == "keep":
        return
    for layer in norm_layers_that_train(state.model).values():
        for buffer in layer.buffers(recurse=False):
            if buffer.is_floating_point():
                buffer.copy_(accelerator.reduce(buffer.clone(), reduction="mean"))


def save(run: Run, state: PhaseState) -> None:
    """Save a checkpoint of the current state, after the proof that it is sound. All processes must call this.

    The state is copied here and written in the background.
    """
    run.watchdog.beat("saving a checkpoint")
    read_losses(run, state)
    check_weights(run, state)
    average_norm_statistics(run, state)
    outside = state.prefix.fingerprints() if state.prefix else {}
    proof = prove(run.accelerator, state.model, state.frozen, state.resolved.phase.name, outside)
    add_proof(run, state.resolved, "checkpoint", proof)
    give_back()
    run.last_save = time.monotonic()
    with raised_on_all(run.accelerator):
        if run.accelerator.is_main_process:
            if not run.rundir.path.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(run.rundir.path))
            check_owner(run)
            run.writer.submit(_snapshot(run, state))
    run.interruption.seconds_of_a_save = run.writer.seconds


def check_owner(run: Run) -> None:
    """Raise UserError if another start has taken over the run dir; the main process calls this before it writes."""
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
    """Wait until the last checkpoint is on the disk, where all processes can read it."""
    with raised_on_all(run.accelerator):
        if run.accelerator.is_main_process:
            run.writer.wait()
