"""A recipe of `tiny` whose features are stored on disk, a block of 32 images every SECONDS_OF_A_BLOCK.

Each block adds a byte to a file beside the run dir. Beside the head, what follows a frozen convolution trains.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time

import tiny
from launcher import Phase

RULES = (("head", 1.0), ("backbone.block2", 0.5), ("backbone", 0.0))
recipe = dataclasses.replace(
    tiny.resumable,
    backbone=tiny.TinyBackbone(),
    data=tiny.StripeData(train=300, val=70),
    freeze_plan=(*tiny.recipe.freeze_plan[:1], Phase(name="partly", rules=RULES, epochs=2)),
    cache="disk",
    checkpoint_every_steps=4,
)


def slow_down() -> None:
    from launcher.training.feature_cache.build import Builder

    look_around = Builder._look_around

    def slowly(builder: Builder, blocks: int) -> None:
        look_around(builder, blocks)
        time.sleep(float(os.environ.get("SECONDS_OF_A_BLOCK", "0")))
        if builder._run.accelerator.is_main_process:
            with (builder._run.rundir.path.parent / "blocks").open("a") as file:
                file.write(".")

    Builder._look_around = slowly  # type: ignore[assignment, method-assign]


if "pytest" not in sys.modules:
    slow_down()
