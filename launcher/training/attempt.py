"""The number of this attempt of a cluster job, the progress of its run, and the steps that the run plans.

The module imports nothing heavy, because batch scripts use it, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import UserError


def attempt_number(environ: Mapping[str, str] = os.environ) -> int:
    """Return the attempt's number: 1 for the first start of a Slurm job, 2 after its first requeue; 1 without Slurm.

    Raise UserError if Slurm's count is not a whole number.
    """
    text = environ.get("SLURM_RESTART_COUNT") or "0"
    if not text.isdecimal():
        raise UserError(f"SLURM_RESTART_COUNT={text}: must be a whole number, as Slurm sets it; unset it")
    return int(text) + 1


def this_attempt(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the fields that distinguish this attempt's rows, lock and marker from those of other attempts."""
    return {"job": environ.get("SLURM_JOB_ID"), "life": attempt_number(environ)}


def newest_step(run_dir: Path) -> int:
    """Return the step of the newest complete checkpoint, or 0 if there is none.

    This is quick: it looks only at the names of the folders and at whether they have a manifest.
    """
    steps = [0]
    for folder in (run_dir / "checkpoints").glob("step-*"):
        text = folder.name.split("-")[1]
        if text.isdigit() and (folder / "MANIFEST.json").is_file():
            steps.append(int(text))
    return max(steps)


def planned_steps(run_dir: Path) -> tuple[int, bool] | None:
    """Return the number of optimizer steps of the whole run, and whether a phase with patience may make them fewer.

    Return None for a run that has not begun. Only the files that a run writes at its beginning are read.
    """
    try:
        recipe = json.loads((run_dir / "recipe.json").read_text(encoding="utf-8"))
        samples = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))["data"]["train_samples"]
        phases = recipe["freeze_plan"]
        steps_per_epoch = -(-samples // recipe["batch_size"])
        steps = steps_per_epoch * sum(phase["epochs"] for phase in phases)
        return int(steps), any(phase["patience"] for phase in phases)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError):  # absent or damaged
        return None
