"""The command `evaluate`: metrics of a finished run's model on a split, each sample once, on any processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import nn

from launcher.assets.bundle import verify_assets
from launcher.compat import end_workers
from launcher.data.image_check import look_at_all, on_bad_image_of, without_broken
from launcher.data.target_precision import as_taken
from launcher.errors import UserError
from launcher.inference.evaluation import Evaluation as Evaluation
from launcher.inference.evaluation import Subject, judged, write
from launcher.inference.evaluation_summary import show
from launcher.inference.finished_run import (
    FinishedRun,
    build_data,
    build_network,
    build_task_alone,
    check_data,
    read_finished,
)
from launcher.inference.labelled_data import read_other, test_split
from launcher.recipe.protocols import BuiltTask, Split
from launcher.recipe.transforms import evaluation as evaluation_transform
from launcher.recipe.type_names import Types
from launcher.text import plural
from launcher.training.accelerator import start_accelerator
from launcher.training.batch_arithmetic import batching_for
from launcher.training.checked_images import checked_together
from launcher.training.collectives import from_main, one_at_a_time, raised_on_all
from launcher.training.data_identity import DataIdentity, seen_before
from launcher.training.evaluation import outputs_of
from launcher.training.feature_cache.directory import cache_folder
from launcher.training.images import evaluation_loader
from launcher.training.launch import Launch, usable_cpus
from launcher.training.setup import workers_of


def evaluate_and_show(
    run_dir: Path, launch: Launch, own: Types, split_name: str, data: Path | None, flips: bool, micro_batch: int | None
) -> None:
    """Evaluate the model of the run in `run_dir` as `evaluate` does, write the files, and print the summary."""
    evaluation = evaluate(
        read_finished(run_dir, own),
        launch,
        split_name=split_name,
        data=data,
        flips=flips,
        micro_batch_size=micro_batch,
        report=lambda line: print(line, flush=True),
    )
    if evaluation is not None:
        write(evaluation)
        show(evaluation, Console(highlight=False))


def evaluate(
    finished: FinishedRun,
    launch: Launch,
    *,
    split_name: str = "val",
    data: Path | None = None,
    flips: bool = False,
    micro_batch_size: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Evaluation | None:
    """Evaluate a finished run's model; return the evaluation on the main process, and None on the others.

    Every process calls this. `split_name` is "val", "train" or "test". `data`, used in place of a split of the run, is
    a folder with a folder for each class, or a table with the run's own columns. With `flips`, the outputs are the
    means over each image and its mirror image. `micro_batch_size` is the number of images that a device processes at a
    time; by default it is that of training on one process.

    Raises UserError for problems that the user can solve.
    """
    accelerator = start_accelerator(finished.recipe, launch, finished.rundir.path)
    try:
        say = report if accelerator.is_main_process else lambda _: None
        if data is None and split_name != "test":
            split, task, names = _own_data(accelerator, finished, split_name, say)
        else:
            split, task, names = _unseen_data(accelerator, finished, data, say)
        with one_at_a_time(accelerator):
            model: nn.Module = build_network(finished, task.num_outputs)
        subject = Subject(split_name=split_name, data=data, flips=flips)
        say(f"{finished.rundir.path}: the weights of step {finished.step} on {plural(len(split), 'image')} ({subject})")
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
        if flips:
            model = WithFlips(model)
        # The memory layout and the precision of the forward pass are those of training.
        placed = accelerator.prepare_model(model.to(memory_format=torch.channels_last), evaluation_mode=True)
        try:
            outputs = outputs_of(accelerator, placed, loader, len(split), task.num_outputs, batch_size, lambda: None)
        finally:
            end_workers(loader)
        if not accelerator.is_main_process:
            return None
        where = accelerator.num_processes, accelerator.device.type
        return judged(finished, subject, split, names, task, outputs, *where)
    finally:
        accelerator.end_training()


class WithFlips(nn.Module):
    """A network that returns the mean of the outputs for each image and its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = (self.model(images).float() + self.model(images.flip(3)).float()) / 2
        return mean


def _own_data(
    accelerator: Accelerator, finished: FinishedRun, split_name: str, say: Callable[[str], None]
) -> tuple[Split, BuiltTask, tuple[str, ...]]:
    with raised_on_all(accelerator):
        if accelerator.is_local_main_process:
            verify_assets(finished.recipe, say)
    with one_at_a_time(accelerator):
        splits = build_data(finished)
    with raised_on_all(accelerator):
        splits = check_data(finished, splits, checked_together(accelerator, say))
        task = finished.recipe.task.build(splits)
    return getattr(splits, split_name), task, splits.names


def _unseen_data(
    accelerator: Accelerator, finished: FinishedRun, data: Path | None, say: Callable[[str], None]
) -> tuple[Split, BuiltTask, tuple[str, ...]]:
    """Return the test split of the run's data, or that in `data`, with the task as fitted to the training images."""
    recipe, field = finished.recipe, "--split test" if data is None else "--data"
    left_out: list[str] = []
    with raised_on_all(accelerator):
        if data is None and accelerator.is_local_main_process:
            verify_assets(recipe, say)
    with one_at_a_time(accelerator):
        if data is None:
            split = _own_test(finished)
        else:
            split, left_out = read_other(recipe.data, recipe.task.target_kind, finished.names, data)
    with raised_on_all(accelerator):
        split = as_taken(recipe.task, split)
        task = build_task_alone(finished, split)
    if left_out:
        say(f"{field}: {plural(len(left_out), 'file', spec='')} left out: {'; '.join(left_out)}")

    def find_broken() -> list[tuple[int, str]]:
        short_side = recipe.backbone.preprocessing().resize_size
        return look_at_all(split.images, usable_cpus(), resize_size=short_side).broken

    broken = from_main(accelerator, find_broken)
    with raised_on_all(accelerator):
        split, lines = without_broken(field, split, broken, on_bad_image_of(recipe.data))
    if lines:
        unread = plural(len(lines), "image that cannot be read is", "images that cannot be read are", spec="")
        say(f"{field}: {unread} left out: {'; '.join(lines)}")
    if accelerator.is_main_process:
        with contextlib.suppress(UserError):  # older runs have not stored the hashes of their images
            then = DataIdentity.load(finished.rundir.path)
            if line := seen_before(then, split, cache_folder() / "digests", usable_cpus(), say):
                say(f"{field}: {line}")
    return split, task, finished.names


def _own_test(finished: FinishedRun) -> Split:
    """Return the test split of the run's data; raise UserError if there is none."""
    splits = build_data(finished)
    if splits.names != finished.names:
        raise UserError(f"{finished.rundir.path}: the data are not those of the run (its classes or targets differ)")
    split = test_split(finished.recipe.data, finished.recipe.task.target_kind, splits)
    if split is None:
        raise UserError(
            f"--split test: the data of {finished.rundir.path} have no test split; give the images with --data: a "
            "folder with a folder for each class, or a CSV or parquet file with the run's own columns"
        )
    return split
