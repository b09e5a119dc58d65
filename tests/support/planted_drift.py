"""Recipes with planted faults: tensors that change and should not, or on one process only."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Literal

import tiny


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drifting(tiny.TinyBackbone):
    fault: Literal["one process nudges", "nudged", "norm in training mode"]

    def build(self) -> Any:
        import torch

        network = super().build()

        def strike(module: Any, *_: Any) -> None:
            conv, norm = module.block1[0], module.block1[1]  # of the copy that a phase trains
            with torch.no_grad():
                if self.fault == "norm in training mode":
                    norm.train()
                elif self.fault == "nudged":
                    conv.weight[3, 1, 0, 2] += 1e-6
                elif os.environ.get("RANK") == "1":
                    conv.bias[2] += 1e-6

        network.register_forward_pre_hook(strike)
        return network


nudged = dataclasses.replace(tiny.recipe, backbone=Drifting(fault="nudged"))
norm = dataclasses.replace(tiny.recipe, backbone=Drifting(fault="norm in training mode"))
# A weight that trains.
apart = dataclasses.replace(
    tiny.recipe, backbone=Drifting(fault="one process nudges"), freeze_plan=tiny.recipe.freeze_plan[1:]
)
