"""A recipe that trains in seconds: pictures made of stripes, a network of a few thousand parameters."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import PIL.Image

from launcher import Preprocessing, Recipe, Split, Splits, heads, optim, phases, tasks, transforms
from launcher.recipe.protocols import TargetKind


@dataclasses.dataclass(frozen=True)
class Stripes:
    """Pictures 16x16 whose class is the direction of their stripes, whose numbers are period and phase."""

    count: int
    seed: int

    def __len__(self) -> int:
        return self.count

    def parameters(self, index: int) -> tuple[int, float, float]:
        draw = np.random.Generator(np.random.PCG64([self.seed, index]))
        return index % 3, float(draw.uniform(3, 8)), float(draw.uniform(0, 3))

    def read(self, index: int) -> PIL.Image.Image:
        return picture(self, index)

    def name(self, index: int) -> str:
        return f"stripes/{self.seed}/{index}"


@functools.cache
def picture(stripes: Stripes, index: int) -> PIL.Image.Image:
    direction, period, phase = stripes.parameters(index)
    y, x = np.mgrid[:16, :16]
    along = (x, y, x + y)[direction]
    noise = np.random.Generator(np.random.PCG64([stripes.seed, index, 1])).normal(0, 20, (16, 16, 3))
    grey = 128 + 100 * np.sin(2 * np.pi * (along / period) + phase)
    return PIL.Image.fromarray(np.clip(grey[..., None] + noise, 0, 255).astype(np.uint8))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StripeData:
    train: int = 90
    val: int = 31

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        def split(count: int, seed: int) -> Split:
            images = Stripes(count, seed)
            rows = [images.parameters(index) for index in range(count)]
            targets: Any
            if target_kind == "class":
                targets = np.array([row[0] for row in rows], dtype=np.int64)
            elif target_kind == "labels":
                targets = np.array([[row[0] == 0, row[0] != 1, row[1] > 5] for row in rows], dtype=np.float32)
            else:
                targets = np.array([row[1:] for row in rows], dtype=np.float32)
            return Split(images, targets)

        names = {"class": ("across", "down", "diagonal"), "labels": ("across", "not_down", "wide")}
        return Splits(split(self.train, 0), split(self.val, 1), names.get(target_kind, ("period", "phase")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyBackbone:
    """Two convolutions with a norm, one of them with dropout behind it."""

    norm: str = "batch"
    dropout: float = 0.0
    width: int = 8

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(image_size=16, resize_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)

    def build(self) -> Any:
        from collections import OrderedDict

        from torch import nn

        def norm(channels: int) -> nn.Module:
            if self.norm == "none":
                return nn.Identity()
            return nn.BatchNorm2d(channels) if self.norm == "batch" else nn.GroupNorm(1, channels)

        def block(inputs: int, outputs: int) -> nn.Module:
            layers = (nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), norm(outputs), nn.ReLU())
            return nn.Sequential(*layers, nn.Dropout(self.dropout))

        network = nn.Sequential(
            OrderedDict(
                block1=block(3, self.width),
                block2=block(self.width, 2 * self.width),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
            )
        )
        network.num_features = 2 * self.width  # type: ignore[assignment]
        return network


recipe = Recipe(
    backbone=TinyBackbone(),
    head=heads.Linear(),
    task=tasks.Classification(),
    data=StripeData(),
    freeze_plan=phases.linear_probe(epochs=2) + phases.full_finetune(epochs=2, backbone_lr_scale=0.5),
    optim=optim.SGD(lr=0.1),
    augment=transforms.Augment(),
    batch_size=32,
)

# All that a checkpoint has to hold: dropout, Adam's moments, an average, saves in mid-epoch. Pictures are read in each
# epoch, by data workers.
resumable = dataclasses.replace(
    recipe,
    backbone=TinyBackbone(dropout=0.3),
    optim=optim.AdamW(lr=0.01),
    ema_decay=0.9,
    checkpoint_every_steps=2,
    final_weights="last",
    cache="off",
)

# What must not depend on the split: no dropout, plain SGD.
parity = dataclasses.replace(recipe, ema_decay=0.9, final_weights="last")
