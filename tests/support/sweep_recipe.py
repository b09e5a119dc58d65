"""The recipe of the sweeps' tests: `tiny`, shorter. Its runs write down what they compute of a frozen prefix. Those of
a worker with HOLD in its environment stay in their fourth step for as long as that file is there.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tiny
from launcher import phases

if TYPE_CHECKING:
    from launcher.training.run import PhaseState, Run

recipe = dataclasses.replace(
    tiny.recipe,
    freeze_plan=phases.linear_probe(epochs=1) + phases.full_finetune(epochs=1, backbone_lr_scale=0.5),
    cache="disk",
)


def watch() -> None:
    from launcher.training import loop
    from launcher.training.feature_cache.build import Builder

    on_disk, quick_step = Builder.on_disk, loop.train_step

    def counted(self: Builder, images: Any, shards: Any, key_of: Any, mine: Any) -> Any:
        if mine:
            with Path(os.environ["COMPUTED"]).open("a") as file:
                file.write(f"{shards.folder.name}\n")
        return on_disk(self, images, shards, key_of, mine)

    def train_step(run: Run, state: PhaseState, batches: Any, step: int) -> None:
        quick_step(run, state, batches, step)
        while run.progress.step == 4 and "HOLD" in os.environ and Path(os.environ["HOLD"]).exists():
            time.sleep(0.05)

    Builder.on_disk, loop.train_step = counted, train_step  # type: ignore[assignment, method-assign]


# The runner takes 2 s of a core to import, and a worker needs it not.
if sys.argv[1:2] == ["train"] and "COMPUTED" in os.environ:
    watch()
