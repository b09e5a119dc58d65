"""Recipes whose network runs out of memory for more than a number of images, while it trains."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import tiny
from launcher import phases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forgetful(tiny.TinyBackbone):
    fits: int
    on_process: int = 0

    def build(self) -> Any:
        import torch

        network = super().build()

        def check(module: Any, inputs: Any, _: Any) -> None:
            # Behind the first block, whose BatchNorm has seen the images by then. Not in the trial batch before
            # training, which is in evaluation mode as a whole.
            here = int(os.environ.get("RANK", "0")) == self.on_process
            if here and module.training and len(inputs[0]) > self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory")

        network.block2[0].register_forward_hook(check)
        return network


recipe = dataclasses.replace(tiny.parity, backbone=Forgetful(fits=5))
second = dataclasses.replace(tiny.parity, backbone=Forgetful(fits=5, on_process=1))
never = dataclasses.replace(tiny.parity, backbone=Forgetful(fits=0))
# Batches of 32 only, so that two parts are two micro-batches of 16, also to BatchNorm.
updating = dataclasses.replace(
    tiny.parity,
    backbone=Forgetful(fits=16),
    data=tiny.StripeData(train=64),
    freeze_plan=phases.full_finetune(epochs=2, norm_statistics="update"),
)
