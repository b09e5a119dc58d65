"""Starting Accelerate."""

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
    """Accelerate as this project uses it: placement, precision, DDP. Order, accumulation and schedules are our own.

    `precision` is what mixed_precision="auto" comes to. Without it: what it came to in this run dir; float32 before.
    """
    if precision is None:
        precision = recipe.mixed_precision
        if precision == "auto":
            precision = recorded_precision(run_dir) or "no"
    if recipe.deterministic:
        # cuBLAS reads this when it is first used; without it torch refuses its matrix products.
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
            # The watchdog ends what is stuck in training; looking at a million images before it may take an hour.
            InitProcessGroupKwargs(timeout=datetime.timedelta(hours=2)),
        ],
        # `prepare` tells those that are not installed; Accelerate would leave them out.
        log_with=[name for name in recipe.trackers if importlib.util.find_spec(name)] or None,
        project_dir=str(run_dir),
    )
    launch.world.check(accelerator, mixed_precision=precision)
    return accelerator


def recorded_settings(run_dir: Path) -> dict[str, str] | None:
    """What "auto" came to when the run began: mixed_precision and memory_format."""
    try:
        recorded: dict[str, str] = json.loads((run_dir / "precision.json").read_text())
    except FileNotFoundError:
        return None
    return {"memory_format": "channels_last"} | recorded  # which older runs had, and did not record


def recorded_precision(run_dir: Path) -> str | None:
    """What mixed_precision="auto" came to when the run began."""
    recorded = recorded_settings(run_dir)
    return recorded["mixed_precision"] if recorded else None
