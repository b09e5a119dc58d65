"""A user's own recipe, cut down to a few steps a phase, as `verify` trains it."""

from __future__ import annotations

import dataclasses

import numpy as np

from launcher.data.image_check import on_bad_image_of
from launcher.data.sources import Subset
from launcher.recipe.part import part
from launcher.recipe.protocols import Data, Split, Splits, TargetKind
from launcher.recipe.recipe import Recipe


@part
class SomeSamples:
    """A selection of at most `train` and `val` samples of another data part, spread evenly over it."""

    data: Data
    train: int
    val: int

    @property
    def on_bad_image(self) -> str:
        """The setting of the other data part."""
        return on_bad_image_of(self.data)

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        splits = self.data.build(target_kind, seed)
        return dataclasses.replace(splits, train=_some(splits.train, self.train), val=_some(splits.val, self.val))


def _some(split: Split, count: int) -> Split:
    # Sources are often sorted by class: the first samples would be of one class only.
    picked = np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).round().astype(np.int64))
    return Split(Subset(split.images, picked), split.targets[picked])


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """Return the recipe with one epoch of `steps` steps a phase, the last on a smaller batch, and a save at each step.

    Its phases have no patience, the last weights are the final ones, and there are no trackers.
    """
    samples = (steps - 1) * recipe.batch_size + max(1, recipe.batch_size // 2 - 1)
    return dataclasses.replace(
        recipe,
        data=SomeSamples(data=recipe.data, train=samples, val=2 * recipe.batch_size + 1),
        freeze_plan=tuple(dataclasses.replace(phase, epochs=1, patience=None) for phase in recipe.freeze_plan),
        checkpoint_every_steps=1,
        checkpoint_every_minutes=None,
        final_weights="last",
        trackers=(),
    )
