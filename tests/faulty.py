"""Recipes in which process 1 dies, or sleeps for ever, in the middle of training."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from typing import Any

import tiny


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(tiny.TinyBackbone):
    fault: str

    def build(self) -> Any:
        network = super().build()

        def strike(module: Any, *_: Any) -> None:
            # Not in the trial batch before training, which is in evaluation mode as a whole.
            if os.environ.get("RANK") == "1" and module.training:
                if self.fault == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(3600)

        network.block2[0].register_forward_hook(strike)
        return network


plan = tiny.recipe.freeze_plan[1:]
dies = dataclasses.replace(tiny.recipe, backbone=Faulty(fault="dies"), freeze_plan=plan)
sleeps = dataclasses.replace(dies, backbone=Faulty(fault="sleeps"), hang_limit_seconds=10.0)
