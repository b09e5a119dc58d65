"""Recipes of `tiny` with steps that take a quarter of a second, or SECONDS_OF_A_STEP.

Each step adds a byte to a file beside the run dir. Their values are those of `tiny`, so a run may go on with either
file.
"""

from __future__ import annotations

import os
import sys
import time

import tiny

from launcher.training import runner

recipe = tiny.resumable
parity = tiny.parity

_train_step = runner.train_step


def train_step(run, state, batches, step) -> None:
    _train_step(run, state, batches, step)
    time.sleep(float(os.environ.get("SECONDS_OF_A_STEP", "0.25")))
    if run.accelerator.is_main_process:
        with (run.rundir.path.parent / "steps").open("a") as file:
            file.write(".")


if "pytest" not in sys.modules:
    runner.train_step = train_step
