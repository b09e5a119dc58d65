"""`plan --time`: how many allocations of a cluster the whole run needs, by a few real steps on this machine."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from launcher.errors import UserError
from launcher.recipe.transforms import evaluation
from launcher.training.accelerating import start_accelerator
from launcher.training.checkpoint import Checkpoints, Progress, State
from launcher.training.images import Batch, EvaluationImages, Sample, TrainingImages, Transform, collate
from launcher.training.interruption import SECONDS_TO_LEAVE
from launcher.training.launch import Launch
from launcher.training.model import cpu_state, freeze, set_train_mode
from launcher.training.optimizing import build_optimizer, optimizer_state
from launcher.training.preparation import Prepared, ResolvedPhase
from launcher.training.progress import duration
from launcher.training.start import workers_of

TIMED = 3
"""Repetitions, after a first one that is not counted: it allocates, and reads what is cold."""
_SLURM_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """What a phase takes, in seconds."""

    name: str
    steps: int
    step: float
    evaluations: int
    evaluation: float
    may_end_early: bool = False

    @property
    def seconds(self) -> float:
        return self.steps * self.step + self.evaluations * self.evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run takes, in seconds."""

    phases: tuple[PhaseCost, ...]
    start: float
    """From the start of Python to the first step."""
    save: float
    """Of the largest checkpoint."""

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def reserve(self) -> float:
        """Before the end of an allocation the run keeps so much free to save and leave."""
        return max(phase.step for phase in self.phases) + 2 * self.save + SECONDS_TO_LEAVE

    def allocations(self, allocation: float) -> int:
        """How many of so many seconds each the run needs. Raises UserError where one is too short to get on at all."""
        usable = allocation - self.start - self.reserve
        # A step, or an evaluation, that does not fit is begun again in each allocation.
        least = max(max(phase.step, phase.evaluation) for phase in self.phases)
        if usable < least:
            needed = math.ceil((self.start + self.reserve + least) / 60)
            raise UserError(
                f"--time: {duration(allocation)} is too short to get on: start, a step or an evaluation, and the save "
                f"take {needed} min; give more than that"
            )
        return max(1, math.ceil(self.seconds / usable))


def allocation_seconds(text: str) -> float:
    """Of Slurm's ways to write a time: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes,
    days-hours:minutes:seconds. Raises UserError for another."""
    found = _SLURM_TIME.fullmatch(text)
    if found is None:
        raise UserError(f"--time {text!r}: write minutes, hours:minutes:seconds, or days-hours:minutes")
    days, (first, second, third) = found["days"], (int(found[name] or 0) for name in ("first", "second", "third"))
    if days is not None:
        return 86400 * int(days) + 3600 * first + 60 * second + third
    if found["third"] is not None:
        return 3600 * first + 60 * second + third
    return 60 * first + second


def time_lines(prepared: Prepared, text: str) -> Iterable[str]:
    """What the plan says of the time, after measuring it. Raises UserError where an allocation is too short."""
    allocation = allocation_seconds(text)
    accelerator = start_accelerator(prepared.recipe, Launch(), Path("runs"))
    num_workers = workers_of(Launch())
    cost = measure(accelerator, prepared, num_workers)
    workers = f"{num_workers} data worker{'' if num_workers == 1 else 's'} per process"
    yield f"measured here, on one process ({accelerator.device.type}, {workers}), a few steps of each phase:"
    for phase in cost.phases:
        evaluations = f"{phase.evaluations} evaluation{'' if phase.evaluations == 1 else 's'}"
        yield (
            f"  {phase.name}: {phase.steps:,} steps x {_short(phase.step)} + {evaluations} x "
            f"{_short(phase.evaluation)} = {duration(phase.seconds)}"
        )
    most = "at most " if any(phase.may_end_early for phase in cost.phases) else ""
    yield (
        f"{most}{duration(cost.seconds)} in all; each allocation loses {duration(cost.start)} to its start and "
        f"{duration(cost.reserve)} to the save before its end"
    )
    yield "not counted: exchange between processes, slower disks than here, and waiting in the queue"
    count = cost.allocations(allocation)
    yield f"--time {text}: {most}{count:,} allocation{'' if count == 1 else 's'} of {duration(allocation)}"


def measure(accelerator: Accelerator, prepared: Prepared, num_workers: int) -> Cost:
    """A few real steps, evaluations and a save, on this machine: network and data of the recipe, micro-batch of the
    plan; the weights are not kept."""
    start = time.time() - psutil.Process().create_time()  # imports, and all that was looked at until here
    micro_batch_size = prepared.batching.micro_batch_size
    train = TrainingImages(
        prepared.splits.train, prepared.recipe.augment.build(prepared.preprocessing), prepared.recipe.seed
    )
    val = EvaluationImages(prepared.splits.val, evaluation(prepared.preprocessing))

    def load(size: int, read: Callable[[int], Sample], transform: Transform) -> tuple[Batch, float]:
        begin = time.perf_counter()
        batch = collate([read(index) for index in range(size)], transform)
        return batch.to(accelerator.device), time.perf_counter() - begin

    batch, seconds_to_load = load(
        min(micro_batch_size, len(train.split)), lambda index: train[0, index], train.transform
    )
    val_batch, seconds_to_load_val = load(min(micro_batch_size, len(val)), lambda index: val[index], val.transform)
    phases, saves = [], []
    for resolved in prepared.phases:
        trial = _Trial(accelerator, prepared, resolved)
        micro_step = _beside_loading(_median(lambda: trial.micro_step(batch)), seconds_to_load, num_workers)  # noqa: B023
        update = _median(trial.update)
        forward = _beside_loading(_median(lambda: trial.evaluate(val_batch)), seconds_to_load_val, num_workers)  # noqa: B023
        share = math.ceil(len(val) / prepared.batching.num_processes)
        averaged = 2 if prepared.recipe.ema_decay else 1  # both the weights and their average are evaluated
        saves.append(trial.save())
        phases.append(
            PhaseCost(
                name=resolved.phase.name,
                steps=resolved.steps,
                step=prepared.batching.accumulation_steps * micro_step + update,
                evaluations=resolved.phase.epochs,
                evaluation=averaged * math.ceil(share / micro_batch_size) * forward,
                may_end_early=resolved.phase.patience is not None,
            )
        )
    return Cost(phases=tuple(phases), start=start, save=max(saves))


class _Trial:
    """A phase's network and optimizer, to be timed."""

    def __init__(self, accelerator: Accelerator, prepared: Prepared, resolved: ResolvedPhase) -> None:
        self.accelerator, self.prepared, self.resolved = accelerator, prepared, resolved
        model: nn.Module = copy.deepcopy(prepared.model)
        freeze(model, resolved.lr_scales)
        model = model.to(memory_format=torch.channels_last)
        self.model: nn.Module = accelerator.prepare_model(model, evaluation_mode=True)
        self.optimizer = build_optimizer(prepared.recipe.optim, self.model, resolved.lr_scales)

    def micro_step(self, batch: Batch) -> None:
        set_train_mode(self.model, self.resolved.phase.norm_statistics)
        losses = self.prepared.task.loss(self.model(batch.images), batch.targets)
        self.accelerator.backward(losses.mean())

    def update(self) -> None:
        self.optimizer.step()

    def evaluate(self, batch: Batch) -> None:
        self.model.eval()
        with torch.no_grad():
            self.model(batch.images)

    def save(self) -> float:
        """Seconds of a checkpoint, on the disk of temporary files."""
        state = State(
            progress=Progress(step=1),
            model=cpu_state(self.model, self.resolved.changing),
            optimizer={"state": optimizer_state(self.optimizer), "scaler": None},
            ema=None,
        )
        with tempfile.TemporaryDirectory(prefix="plan-") as folder:
            begin = time.perf_counter()
            Checkpoints(Path(folder)).save(state)
            return time.perf_counter() - begin


def _median(work: Callable[[], None]) -> float:
    seconds: Sequence[float] = [_timed(work) for _ in range(1 + TIMED)]
    return statistics.median(seconds[1:])


def _timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _beside_loading(compute: float, load: float, num_workers: int) -> float:
    """Workers load the next batches meanwhile; without any, the process does it itself."""
    return max(compute, load / num_workers) if num_workers else compute + load


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 60 else duration(seconds)
