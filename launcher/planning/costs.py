"""The times of a few real steps, evaluations and a save on this machine, from which `plan --time` reckons."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from launcher.errors import UserError
from launcher.recipe.transforms import evaluation
from launcher.text import duration
from launcher.training.checkpoint import Checkpoints, Progress, State
from launcher.training.feature_cache.frozen_part import Frozen, frozen_part
from launcher.training.images import Batch, EvaluationImages, Sample, TrainingImages, Transform, collate
from launcher.training.model import cpu_state, freeze, place, set_train_mode
from launcher.training.optimizer import build_optimizer, optimizer_state
from launcher.training.preflight import Prepared, ResolvedPhase
from launcher.training.stop import SECONDS_TO_LEAVE

TIMED = 3
"""Timed repetitions, after a first one that is not counted: it allocates memory and fills caches."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseCost:
    """The time that a phase takes: its numbers of steps and evaluations, and the seconds of each one."""

    name: str
    steps: int
    step: float
    evaluations: int
    evaluation: float
    features: float = 0.0
    """Seconds to compute the outputs of the frozen layers once, if they are stored."""
    may_end_early: bool = False
    """True if the phase has patience."""

    @property
    def seconds(self) -> float:
        """The seconds of the whole phase."""
        return self.features + self.steps * self.step + self.evaluations * self.evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The time that a run takes, in seconds."""

    phases: tuple[PhaseCost, ...]
    start: float
    """The time from the start of Python to the first step."""
    save: float
    """The time to save the largest checkpoint."""

    @property
    def seconds(self) -> float:
        """The time of all phases."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def reserve(self) -> float:
        """The time that the run keeps free before the end of an allocation, to save and leave."""
        return max(phase.step for phase in self.phases) + 2 * self.save + SECONDS_TO_LEAVE

    def allocations(self, allocation: float) -> int:
        """Return how many allocations of `allocation` seconds the run needs.

        Raises UserError if one is too short to get on at all.
        """
        usable = allocation - self.start - self.reserve
        # A step or an evaluation that does not fit into one allocation would be begun again in each.
        least = max(max(phase.step, phase.evaluation) for phase in self.phases)
        if usable < least:
            needed = math.ceil((self.start + self.reserve + least) / 60)
            raise UserError(
                f"--time: {duration(allocation)} is too short to get on: start, a step or an evaluation, and the save "
                f"take {needed} min; give more than that"
            )
        return max(1, math.ceil(self.seconds / usable))


def measure(accelerator: Accelerator, prepared: Prepared, num_workers: int) -> Cost:
    """Time a few real steps, evaluations and a save on this machine.

    They take the network and data of the recipe, and the micro-batch of the plan; the weights are not kept.
    """
    start = time.time() - psutil.Process().create_time()  # imports, and all checks until here
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
    processes = prepared.batching.num_processes
    share, val_share = math.ceil(len(train.split) / processes), math.ceil(len(val) / processes)
    averaged = 2 if prepared.recipe.ema_decay else 1  # both the weights and their moving average are evaluated
    phases, saves = [], []
    for resolved in prepared.phases:
        trial = _Trial(accelerator, prepared, resolved)
        with_prefix, with_val_prefix = trial.prefix_seconds(batch), trial.prefix_seconds(val_batch)
        inputs, val_inputs = trial.inputs(batch), trial.inputs(val_batch)
        step = _median(lambda: trial.micro_step(inputs, batch.targets))  # noqa: B023
        forward = _median(lambda: trial.evaluate(val_inputs))  # noqa: B023
        features = 0.0
        if trial.stores and resolved.fixed_views is not None:
            each = _beside_loading(with_prefix, seconds_to_load, num_workers) / len(batch.targets)
            features += max(1, resolved.fixed_views) * share * each
        else:
            step = _beside_loading(with_prefix + step, seconds_to_load, num_workers)
        if trial.stores:
            each = _beside_loading(with_val_prefix, seconds_to_load_val, num_workers) / len(val_batch.targets)
            features += val_share * each
        else:
            forward = _beside_loading(with_val_prefix + forward, seconds_to_load_val, num_workers)
        update = _median(trial.update)
        saves.append(trial.save())
        phases.append(
            PhaseCost(
                name=resolved.phase.name,
                steps=resolved.steps,
                step=prepared.batching.accumulation_steps * step + update,
                evaluations=resolved.phase.epochs,
                evaluation=averaged * math.ceil(val_share / micro_batch_size) * forward,
                features=features,
                may_end_early=resolved.phase.patience is not None,
            )
        )
    return Cost(phases=tuple(phases), start=start, save=max(saves))


class _Trial:
    """The network and the optimizer of a phase, for timing."""

    def __init__(self, accelerator: Accelerator, prepared: Prepared, resolved: ResolvedPhase) -> None:
        self.accelerator, self.prepared, self.resolved = accelerator, prepared, resolved
        self.model = place(copy.deepcopy(prepared.model), accelerator.device)
        freeze(self.model, resolved.lr_scales)
        frozen = frozen_part(accelerator, self.model, resolved, prepared.recipe, prepared.preprocessing.image_size)
        self.frozen = frozen if isinstance(frozen, Frozen) else None
        trained = self.model if self.frozen is None else self.frozen.tail
        self.wrapped: nn.Module = accelerator.prepare_model(trained, evaluation_mode=True)
        self.optimizer = build_optimizer(prepared.recipe.optim, self.model, resolved.lr_scales)

    @property
    def stores(self) -> bool:
        """True if features are stored, provided that there is room for them."""
        return self.frozen is not None and self.prepared.recipe.cache != "off"

    def inputs(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the inputs of the trained layers: the images, or what the frozen layers make of them."""
        return (batch.images,) if self.frozen is None else self.frozen.of(batch)

    def prefix_seconds(self, batch: Batch) -> float:
        """Return the seconds that the frozen layers take for a batch."""
        return 0.0 if self.frozen is None else _median(lambda: self.inputs(batch))

    def micro_step(self, inputs: Sequence[torch.Tensor], targets: torch.Tensor) -> None:
        """Run the forward and the backward pass of a micro-batch."""
        set_train_mode(self.model, self.resolved.phase.norm_statistics)
        losses = self.prepared.task.loss(self.wrapped(*inputs), targets)
        self.accelerator.backward(losses.mean())

    def update(self) -> None:
        """Run the optimizer."""
        self.optimizer.step()

    def evaluate(self, inputs: Sequence[torch.Tensor]) -> None:
        """Run the forward pass of a micro-batch in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            self.wrapped(*inputs)

    def save(self) -> float:
        """Save a checkpoint on the disk of temporary files, and return the seconds that this took."""
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


def _median(work: Callable[[], object]) -> float:
    return statistics.median([_timed(work) for _ in range(1 + TIMED)][1:])


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _beside_loading(compute: float, load: float, num_workers: int) -> float:
    """Return the seconds of computing and loading: workers load meanwhile; without any, the process loads itself."""
    return max(compute, load / num_workers) if num_workers else compute + load
