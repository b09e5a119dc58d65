"""Recipes with planted faults: data and augmentation that depend on the process."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

import tiny
from launcher import Preprocessing, Split, Splits, transforms
from launcher.data.sources import Subset
from launcher.recipe.protocols import TargetKind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misordered(tiny.StripeData):
    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        splits = super().build(target_kind, seed)
        order = np.random.Generator(np.random.PCG64(int(os.environ.get("RANK", 0)))).permutation(self.train)
        train = Split(Subset(splits.train.images, order), splits.train.targets[order])
        return dataclasses.replace(splits, train=train)


@dataclasses.dataclass(frozen=True)
class Brighter:
    inner: Callable[..., Any]

    def __call__(self, image: Any) -> Any:
        return self.inner(image) + 0.1 * int(os.environ.get("RANK", 0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misdrawn:
    def build(self, preprocessing: Preprocessing) -> Callable[..., Any]:
        return Brighter(transforms.Augment().build(preprocessing))


recipe = dataclasses.replace(tiny.recipe, data=Misordered())
misdrawn = dataclasses.replace(tiny.recipe, augment=Misdrawn())
