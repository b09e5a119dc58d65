"""What lives as long as a run, and what lives as long as a phase."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from launcher.recipe.recipe import Recipe
from launcher.training.checkpoint import Progress
from launcher.training.checkpoint_writer import BackgroundWriter
from launcher.training.command import Command
from launcher.training.data_order import TrainingKeys
from launcher.training.evaluation import KeptOutputs
from launcher.training.feature_cache.frozen_part import Frozen
from launcher.training.feature_cache.loader import Source
from launcher.training.images import Batch, end_workers
from launcher.training.model import (
    TransferModel,
)
from launcher.training.optimizer import WeightAverage
from launcher.training.preflight import Prepared, ResolvedPhase
from launcher.training.progress import Screen
from launcher.training.run_dir import MetricsLog, RunDir
from launcher.training.run_lock import RunLock
from launcher.training.stop import Interruption, StoppedError
from launcher.training.watchdog import Watchdog

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

    def check_in(self, doing: str) -> None:
        """Tell the watchdog what this process is doing, and ask whether the run is to stop. Called by all processes.

        Raises StoppedError, on all of them, where one was asked to.
        """
        self.watchdog.beat(doing)
        reason, _ = self.interruption.agreed()
        if reason:
            raise StoppedError(reason)

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


@dataclasses.dataclass(frozen=True)
class Unread:
    """A step whose loss is still on the device."""

    row: dict[str, Any]
    """Which will tell it."""
    loss_sum: torch.Tensor
    step_in_epoch: int
    finite: torch.Tensor | None = None
    """Whether its gradient was, where that is to be known yet; bool (), on the device."""


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
