"""The state of a run, and the state of a phase."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from launcher.compat import end_workers
from launcher.recipe.recipe import Recipe
from launcher.training.checkpoint import Progress
from launcher.training.checkpoint_writer import BackgroundWriter
from launcher.training.command import Command
from launcher.training.data_order import TrainingKeys
from launcher.training.evaluation import KeptOutputs
from launcher.training.feature_cache.frozen_part import Frozen
from launcher.training.feature_cache.loader import Source
from launcher.training.images import Batch
from launcher.training.metrics_log import MetricsLog
from launcher.training.model import TransferModel
from launcher.training.optimizer import WeightAverage
from launcher.training.preflight import Prepared, ResolvedPhase
from launcher.training.progress import Screen
from launcher.training.run_dir import RunDir
from launcher.training.run_lock import RunLock
from launcher.training.stop import Interruption
from launcher.training.stop_request import StoppedError
from launcher.training.watchdog import Watchdog

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


@dataclasses.dataclass
class Run:
    """The objects that live as long as a run."""

    accelerator: Accelerator
    prepared: Prepared
    rundir: RunDir
    screen: Screen
    progress: Progress
    metrics: MetricsLog | None
    """The log of metrics on the main process; None on the others."""
    model: TransferModel
    """The network between phases, on the CPU; each phase trains a copy."""
    keys: TrainingKeys
    train_loader: DataLoader[Batch]
    val_loader: DataLoader[Batch]
    val_batch_size: int
    num_workers: int
    """Number of data workers of this process."""
    num_local_processes: int
    """Number of the run's processes on this machine."""
    lock: RunLock | None
    """The lock on the run dir on the main process; None on the others."""
    interruption: Interruption
    watchdog: Watchdog
    writer: BackgroundWriter
    command: Command
    kept: KeptOutputs | None = None
    """The kept validation outputs on the main process; None on the others."""
    parts: int | None = None
    """Number of chunks in which each micro-batch is computed, one after the other.

    It grows after a step that ran out of memory. It is None without `--micro-batch auto`: such a step then ends the
    run.
    """
    last_save: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def recipe(self) -> Recipe:
        """Return the recipe of the run."""
        return self.prepared.recipe

    def close(self) -> None:
        """Close and release everything that the run holds; this is safe to call in the middle of a failure."""
        # All callbacks run, the last one first, even if some fail: torch may raise at any moment after a data worker
        # was killed.
        with contextlib.ExitStack() as stack:
            for loader in (self.val_loader, self.train_loader):
                stack.callback(end_workers, loader)
            stack.callback(_close, self.screen.close)
            if self.lock:
                stack.callback(_close, self.lock.release)
            if self.metrics:
                stack.callback(_close, self.metrics.close)
            stack.callback(self.writer.join)

    def check_in(self, doing: str) -> None:
        """Report to the watchdog what this process is doing, and check whether the run is to stop.

        All processes must call this. Raise StoppedError, on all of them, if one was asked to stop.
        """
        self.watchdog.beat(doing)
        reason, _ = self.interruption.agree()
        if reason:
            raise StoppedError(reason)

    def save_is_due(self) -> bool:
        """Return whether checkpoint_every_minutes have passed; only on the main process, whose clock counts."""
        minutes = self.recipe.checkpoint_every_minutes
        due = minutes is not None and time.monotonic() - self.last_save > 60 * minutes
        return due and self.accelerator.is_main_process

    def monitored(self, resolved: ResolvedPhase) -> str:
        """Return the metric that determines the best epoch: that of the averaged weights if the run averages them."""
        name = resolved.phase.monitor or self.prepared.task.monitor
        return f"ema_{name}" if self.recipe.ema_decay else name


def _close(close: Callable[[], None]) -> None:
    # On a full disk, writing the rest of a buffer fails once more; what matters was written before each checkpoint.
    with contextlib.suppress(OSError):
        close()


@dataclasses.dataclass(frozen=True)
class Unread:
    """A step whose loss is still on the device."""

    row: dict[str, Any]
    """The row of metrics.jsonl that the loss will be added to."""
    loss_sum: torch.Tensor
    step_in_epoch: int
    finite: torch.Tensor | None = None
    """bool () on the device: whether its gradient was finite; None if that needs no check."""


@dataclasses.dataclass
class PhaseState:
    """The objects that live as long as a phase."""

    resolved: ResolvedPhase
    model: nn.Module
    """The copy of the network that this phase trains; `wrapped` holds it, or the layers behind its frozen prefix."""
    wrapped: nn.Module
    """The module that is called in training, which averages the gradients of all processes."""
    optimizer: AcceleratedOptimizer
    average: WeightAverage | None
    source: Source
    """The source of batches, which hold images or the boundary tensors behind the frozen prefix."""
    prefix: Frozen | None
    """The network cut behind its frozen prefix; None if there is no such prefix or it could not be cut off."""
    frozen: dict[str, str]
    """Hashes of all tensors that the phase must not change, by name."""
    scaler_skips: int = 0
    """Number of successive steps that fp16's gradient scaler has skipped."""
    unread: list[Unread] = dataclasses.field(default_factory=list)
