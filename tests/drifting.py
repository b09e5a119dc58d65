"""A recipe with a planted fault: one process nudges one of its weights."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import tiny


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drifting(tiny.TinyBackbone):
    def build(self) -> Any:
        import torch

        network = super().build()

        def nudge(module: Any, *_: Any) -> None:
            if os.environ.get("RANK") == "1" and torch.is_grad_enabled():
                with torch.no_grad():
                    module.bias += 1e-6

        network.block2[0].register_forward_hook(nudge)
        return network


recipe = dataclasses.replace(tiny.recipe, backbone=Drifting(), freeze_plan=tiny.recipe.freeze_plan[1:])
