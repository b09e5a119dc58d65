"""Recipes of `tiny` with steps that take a quarter of a second, or SECONDS_OF_A_STEP.

Each step adds a byte to a file `steps` beside the run dir, and lasts as long as a file `hold` is there. Their values
are those of `tiny`, so a run may go on with either file.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import tiny

if TYPE_CHECKING:
    from launcher.training.run import PhaseState, Run

recipe = tiny.resumable
parity = tiny.parity


def slow_down() -> None:
    from launcher.training import loop

    quick_step = loop.train_step

    def train_step(run: Run, state: PhaseState, batches: Any, step: int) -> None:
        quick_step(run, state, batches, step)
        time.sleep(float(os.environ.get("SECONDS_OF_A_STEP", "0.25")))
        beside = run.rundir.path.parent
        while (beside / "hold").exists():
            time.sleep(0.05)
        if run.accelerator.is_main_process:
            with (beside / "steps").open("a") as file:
                file.write(".")

    loop.train_step = train_step  # type: ignore[assignment]


# The runner takes 2 s of a core to import, and the words of a job's ends, which load the recipe too, need it not.
if "pytest" not in sys.modules and sys.argv[1:2] != ["job"]:
    slow_down()
