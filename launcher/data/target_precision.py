"""Precision in which a task takes targets of kind "values"."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from launcher.recipe.abilities import TakesExactTargets
from launcher.recipe.protocols import Split, Splits, Task
from launcher.recipe.recipe import Recipe


def build_splits(recipe: Recipe) -> Splits:
    """Return the images and targets of a recipe, with targets in the precision that its task takes.

    Raises UserError as the data part does.
    """
    splits = recipe.data.build(recipe.task.target_kind, recipe.seed)
    train, val = (as_taken(recipe.task, split) for split in (splits.train, splits.val))
    return dataclasses.replace(splits, train=train, val=val)


def as_taken(task: Task, split: Split) -> Split:
    """Return a split with float32 targets instead of float64, unless the task takes float64 (`exact_targets`)."""
    targets = np.asarray(split.targets)
    if targets.dtype != np.float64 or (isinstance(task, TakesExactTargets) and task.exact_targets):
        return split
    return dataclasses.replace(split, targets=targets.astype(np.float32))


def on_device(targets: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return targets on `device`; float64 stays on the CPU if the device does not support it (Apple's MPS)."""
    if device.type == "mps" and targets.dtype == torch.float64:
        return targets
    return targets.to(device, non_blocking=True)
