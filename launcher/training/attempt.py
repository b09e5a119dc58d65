"""This start of a job among its starts, how far its run has come, and how far it is to go.

Imports nothing heavy: batch scripts ask, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import UserError


def life_number(environ: Mapping[str, str] = os.environ) -> int:
    """1 for the first start of a Slurm job, 2 after its first requeue, and so on; 1 without Slurm. Raises
    UserError where Slurm's count is no number."""
    text = environ.get("SLURM_RESTART_COUNT") or "0"
    if not text.isdecimal():
        raise UserError(f"SLURM_RESTART_COUNT={text}: must be a whole number, as Slurm sets it; unset it")
    return int(text) + 1


def this_life(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What tells this life's rows, lock and marker from those of others."""
    return {"job": environ.get("SLURM_JOB_ID"), "life": life_number(environ)}


def newest_step(run_dir: Path) -> int:
    """The step of the newest complete checkpoint, 0 where there is none. By its name and manifest alone: quick."""
    steps = [0]
    for folder in (run_dir / "checkpoints").glob("step-*"):
        text = folder.name.split("-")[1]
        if text.isdigit() and (folder / "MANIFEST.json").is_file():
            steps.append(int(text))
    return max(steps)


def planned_steps(run_dir: Path) -> tuple[int, bool] | None:
    """Optimizer steps of the whole run, and whether they may be fewer (a phase with patience may end early); None for
    a run that has not begun. By the files alone that it has written at its beginning."""
    try:
        recipe = json.loads((run_dir / "recipe.json").read_text(encoding="utf-8"))
        samples = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))["data"]["train_samples"]
        phases = recipe["freeze_plan"]
        steps_per_epoch = -(-samples // recipe["batch_size"])
        steps = steps_per_epoch * sum(phase["epochs"] for phase in phases)
        return int(steps), any(phase["patience"] for phase in phases)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):  # absent or damaged
        return None
