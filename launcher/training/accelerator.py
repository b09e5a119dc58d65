"""The start of Accelerate."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from launcher.recipe.recipe import Recipe
from launcher.training.launch import Launch


def start_accelerator(recipe: Recipe, launch: Launch, run_dir: Path, precision: str | None = None) -> Accelerator:
    """Start Accelerate for placement, precision and DDP; data order, accumulation and schedules are this project's own.

    `precision` is the choice that mixed_precision="auto" stands for. If it is None and the recipe says "auto", the
    choice recorded in this run dir is used, or float32 if none is recorded yet.
    """
    if precision is None:
        precision = recipe.mixed_precision
        if precision == "auto":
            precision = recorded_precision(run_dir) or "no"
    if recipe.deterministic:
        # cuBLAS reads this variable on first use; without it torch refuses to run its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    accelerator = Accelerator(
        cpu=launch.world.use_cpu,
        mixed_precision=precision,
        gradient_accumulation_steps=1,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            # The watchdog ends a process that is stuck in training; before training, checking a million images may
            # take an hour.
            InitProcessGroupKwargs(timeout=datetime.timedelta(hours=2)),
        ],
        # `prepare` reports trackers that are not installed; Accelerate would leave them out silently.
        log_with=[name for name in recipe.trackers if importlib.util.find_spec(name)] or None,
        project_dir=str(run_dir),
    )
    launch.world.check(accelerator, mixed_precision=precision)
    return accelerator


def recorded_settings(run_dir: Path) -> dict[str, str] | None:
    """Return the mixed_precision and memory_format chosen for "auto" when the run began, or None if not recorded."""
    try:
        recorded: dict[str, str] = json.loads((run_dir / "precision.json").read_text())
    except FileNotFoundError:
        return None
    return {"memory_format": "channels_last"} | recorded  # older runs used channels last without recording it


def recorded_precision(run_dir: Path) -> str | None:
    """Return the precision chosen for mixed_precision="auto" when the run began, or None if none is recorded."""
    recorded = recorded_settings(run_dir)
    return recorded["mixed_precision"] if recorded else None
