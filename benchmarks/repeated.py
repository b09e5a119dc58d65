"""A data part for benchmarks: so many samples, whatever there are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from launcher.data.sources import Subset
from launcher.recipe.protocols import Data, Split, Splits, TargetKind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeated:
    """The training samples of another data part again and again, and a few of its validation samples."""

    data: Data
    train: int
    val: int = 8

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        whole = self.data.build(target_kind, seed)
        train = np.resize(np.arange(len(whole.train)), self.train)
        val = np.linspace(0, len(whole.val) - 1, self.val).round().astype(np.int64)
        return dataclasses.replace(whole, train=_picked(whole.train, train), val=_picked(whole.val, val))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """The training samples of another data part so many times; its validation samples as they are."""

    data: Data
    times: int

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        whole = self.data.build(target_kind, seed)
        return dataclasses.replace(whole, train=_picked(whole.train, np.tile(np.arange(len(whole.train)), self.times)))


def _picked(split: Split, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Split:
    return Split(Subset(split.images, rows), split.targets[rows])
