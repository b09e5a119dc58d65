"""ResNet-50 with random weights on ants and bees, for timing: the head alone, and the last block with it."""

from __future__ import annotations

import dataclasses

from benchmarks.repeated import Times
from launcher import Phase, Recipe, backbones, data, heads, optim, phases, tasks

head = Recipe(
    backbone=backbones.Torchvision(name="resnet50", weights=None),
    head=heads.Linear(),
    task=tasks.Classification(),
    data=data.ImageFolder(root="hymenoptera_data"),
    freeze_plan=phases.linear_probe(epochs=20),
    optim=optim.SGD(lr=1e-7),  # random weights would not bear more, and the time is the same
    batch_size=32,
)

LAST = (("head", 1.0), ("backbone.layer4", 1.0), ("backbone", 0.0))

# Each image in its evaluation view, whose features are stored up to layer 4.
last_block = dataclasses.replace(head, freeze_plan=(Phase(name="last_block", rules=LAST, epochs=20),), cache="disk")

# Fresh pictures in each epoch: nothing can be stored for training.
partly = dataclasses.replace(last_block, cache="off")

everything = dataclasses.replace(head, freeze_plan=phases.full_finetune(epochs=1, backbone_lr_scale=1.0))

repeated = dataclasses.replace(
    head, data=Times(data=head.data, times=1), freeze_plan=phases.linear_probe(epochs=5), cache="disk"
)
