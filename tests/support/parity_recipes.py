"""Recipes whose weights must not depend on the split: two phases, an uneven last batch, plain SGD."""

from __future__ import annotations

import dataclasses

import tiny
from launcher import backbones, optim, phases

layer_norm = dataclasses.replace(tiny.parity, backbone=tiny.TinyBackbone(norm="layer"))
resnet = dataclasses.replace(
    tiny.parity,
    backbone=backbones.Torchvision(name="resnet18", weights=None, image_size=32),
    optim=optim.SGD(lr=0.01),
    freeze_plan=phases.linear_probe(epochs=1) + phases.full_finetune(epochs=1),
)
