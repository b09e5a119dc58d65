"""`evaluate`: the metrics of a finished run's model on a split of its data, each sample once, on any processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from launcher.errors import Problems, UserError
from launcher.recipe.assets import verify_assets
from launcher.recipe.protocols import BuiltTask, Split
from launcher.recipe.transforms import evaluation as evaluation_transform
from launcher.results.finished import FinishedRun, build_data, build_network, check_data
from launcher.training.accelerating import start_accelerator
from launcher.training.agreement import agreed
from launcher.training.batching import batching_for
from launcher.training.evaluating import metrics_of, outputs_of
from launcher.training.images import Batch, end_workers, evaluation_loader
from launcher.training.launch import Launch
from launcher.training.model import TransferModel
from launcher.training.rundir import write_whole
from launcher.training.start import workers_of
from launcher.training.verification import checked_together

SAME = 1e-4
"""Metrics that differ by less, relative to their size, are the same: another number of processes rounds otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's outputs on a split, and what they are worth."""

    run: FinishedRun
    split_name: str
    split: Split
    task: BuiltTask
    outputs: torch.Tensor
    """float32 (samples, outputs), on the CPU, in the order of the split."""
    metrics: dict[str, float]
    how: dict[str, Any]
    """On which processes and device."""

    def to_json(self) -> dict[str, Any]:
        recipe = self.run.recipe
        weights = {
            "file": str(self.run.weights.relative_to(self.run.rundir.path)),
            "step": self.run.step,
            "chosen": recipe.final_weights,
            "averaged": recipe.ema_decay is not None,
        }
        return {
            "split": self.split_name,
            "samples": len(self.split),
            "metrics": self.metrics,
            "weights": weights,
            **self.how,
        }

    @property
    def file(self) -> Path:
        name = "evaluation.json" if self.split_name == "val" else f"evaluation-{self.split_name}.json"
        return self.run.rundir.path / name

    def unlike_training(self) -> dict[str, float]:
        """Validation metrics that are not those of the run itself, with what they were: something has changed."""
        if self.split_name != "val":
            return {}
        then = self.run.metrics
        return {
            name: then[name]
            for name, value in self.metrics.items()
            if name in then and abs(value - then[name]) > SAME * max(1.0, abs(then[name]))
        }


def evaluate(
    finished: FinishedRun,
    launch: Launch,
    *,
    split_name: str = "val",
    micro_batch_size: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Evaluation | None:
    """Called by every process; the evaluation on the main one, None on the others.

    `micro_batch_size` is how many images a device computes at a time, as in training on one process unless given.
    Raises UserError for what the user can put right.
    """
    accelerator = start_accelerator(finished.recipe, launch, finished.rundir.path)
    try:
        say = tell if accelerator.is_main_process else lambda _: None
        with agreed(accelerator):
            if accelerator.is_local_main_process:
                verify_assets(finished.recipe, say)
        with _one_at_a_time(accelerator):
            splits = build_data(finished)
        with agreed(accelerator):
            splits = check_data(finished, splits, checked_together(accelerator, say))
            task = finished.recipe.task.build(splits)
        with _one_at_a_time(accelerator):
            model = build_network(finished, task.num_outputs)
        split: Split = getattr(splits, split_name)
        say(f"{finished.rundir.path}: the weights of step {finished.step} on {len(split):,} images ({split_name})")
        batch_size = micro_batch_size or batching_for(finished.recipe.batch_size, 1, None).micro_batch_size
        loader = evaluation_loader(
            split,
            evaluation_transform(finished.preprocessing),
            batch_size=batch_size,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
            num_workers=workers_of(launch),
            pin_memory=accelerator.device.type == "cuda",
        )
        outputs = _outputs(accelerator, model, loader, len(split), task.num_outputs, batch_size)
        if not accelerator.is_main_process:
            return None
        return Evaluation(
            run=finished,
            split_name=split_name,
            split=split,
            task=task,
            outputs=outputs,
            metrics=metrics_of(task, outputs, split),
            how={
                "processes": accelerator.num_processes,
                "device": accelerator.device.type,
                "mixed_precision": finished.recipe.mixed_precision,
            },
        )
    finally:
        accelerator.end_training()


def _outputs(
    accelerator: Accelerator,
    model: TransferModel,
    loader: DataLoader[Batch],
    num_samples: int,
    num_outputs: int,
    batch_size: int,
) -> torch.Tensor:
    # As in training: the same layout in memory, and the same precision around each forward.
    placed = accelerator.prepare_model(model.to(memory_format=torch.channels_last), evaluation_mode=True)
    try:
        return outputs_of(accelerator, placed, loader, num_samples, num_outputs, batch_size, lambda: None)
    finally:
        end_workers(loader)


@contextlib.contextmanager
def _one_at_a_time(accelerator: Accelerator) -> Iterator[None]:
    """For what may download: the first process of each machine before its others. A UserError is raised by all."""
    problems = Problems()
    with agreed(accelerator):
        with accelerator.local_main_process_first(), problems.collected():
            yield
        problems.raise_if_any()


def write(evaluation: Evaluation) -> None:
    """Into the run dir. Raises UserError where it cannot be written."""
    try:
        write_whole(evaluation.file, json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{evaluation.file}: cannot be written ({error.strerror})") from error


def show(evaluation: Evaluation, console: Console) -> None:
    """Print the metrics; those of single classes are in the file."""
    then = evaluation.unlike_training()
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("metric")
    table.add_column(evaluation.split_name, justify="right")
    if then:
        table.add_column("in the run", justify="right")
    for name, value in evaluation.metrics.items():
        if "/" not in name:
            cells = [name, f"{value:.4f}"] + ([f"{evaluation.run.metrics[name]:.4f}"] if name in then else [])
            table.add_row(*cells)
    console.print(table)
    if then:
        console.print(
            "not the metrics of the run itself: the images, or the code of the recipe, are not what they were",
            style="yellow",
        )
    console.print(f"written to {evaluation.file}", markup=False)
