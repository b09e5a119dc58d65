"""The trackers TensorBoard, Weights & Biases and MLflow, with one project per recipe and one run per run dir."""

from __future__ import annotations

import dataclasses
import shlex
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from launcher.errors import UserError
from launcher.files import read_json, write_json
from launcher.recipe.dotted import flat
from launcher.recipe.recipe import Recipe
from launcher.recipe.serialization import to_json
from launcher.training.preflight import ResolvedPhase
from launcher.training.progress import Speed
from launcher.training.run import Run

FILE = "trackers.json"
"""File in the run dir with the ids by which trackers recognise the run when it continues."""


def init_kwargs(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return each tracker's arguments for a run: its name, and the id under which it was begun.

    Raise UserError if the file of ids is damaged.
    """
    file = run_dir / FILE
    ids = read_json(file) if file.is_file() else {}
    if not isinstance(ids, dict):
        raise UserError(f"{file}: holds no ids of trackers; remove it, and the trackers begin another run")
    name = run_dir.absolute().name
    return {
        "wandb": {"name": name, "id": ids.get("wandb", uuid.uuid4().hex[:16]), "resume": "allow"},
        "mlflow": {"run_name": name, "run_id": ids.get("mlflow")},
    }


def start_trackers(accelerator: Accelerator, recipe: Recipe, project: str, run_dir: Path) -> list[str]:
    """Begin or continue the run in all trackers of the recipe, and keep its ids.

    Return, on the main process, one line per tracker on how to view the run.
    """
    if not recipe.trackers:
        return []
    # Trackers accept only scalars.
    settings = {
        name: value if isinstance(value, (bool, int, float)) else str(value)
        for name, value in flat(to_json(recipe)).items()
    }
    options = init_kwargs(run_dir)
    accelerator.init_trackers(project, config=settings, init_kwargs=options)
    if not accelerator.is_main_process:
        return []
    ids = {}
    if "wandb" in recipe.trackers:
        ids["wandb"] = options["wandb"]["id"]
    if "mlflow" in recipe.trackers:
        ids["mlflow"] = accelerator.get_tracker("mlflow", unwrap=True).info.run_id
    if ids:
        write_json(run_dir / FILE, ids)
    where = f"project {project}, run {run_dir.absolute().name}"
    ways = {
        "tensorboard": f"tensorboard --logdir {shlex.quote(str(run_dir.parent))}",
        "wandb": where,
        "mlflow": f"{where}; mlflow ui",
    }
    return [f"{name}: {ways[name]}" for name in recipe.trackers]


def log_step(run: Run, resolved: ResolvedPhase, row: Mapping[str, Any], loss: float | None) -> None:
    """Log an optimizer step: its loss, and the learning rate of each group of parameters."""
    if run.accelerator.trackers:
        values = {f"lr/scale_{group.lr_scale:g}": row["lr"] * group.lr_scale for group in resolved.groups}
        values |= {} if loss is None else {"train/step_loss": loss}
        run.accelerator.log(values, step=row["step"])


def log_epoch(run: Run, resolved: ResolvedPhase, metrics: Mapping[str, float]) -> None:
    """Log an epoch's metrics and training loss."""
    if run.accelerator.trackers:
        values = {f"val/{name}": value for name, value in metrics.items()}
        values |= {"train/loss": run.progress.train_loss, "phase": resolved.number + 1}
        run.accelerator.log(values, step=run.progress.step)


def log_speed(run: Run, speed: Speed | None, seconds: float) -> None:
    """Log the duration and the speed of an epoch."""
    if run.accelerator.trackers:
        values = {"speed/epoch_seconds": seconds}
        values |= {f"speed/{name}": value for name, value in dataclasses.asdict(speed).items()} if speed else {}
        run.accelerator.log(values, step=run.progress.step)
