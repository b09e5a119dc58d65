"""Features of a finished run's images, from its backbone as it was before training and as it is now."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from launcher.compat import end_workers
from launcher.data.sources import Subset
from launcher.errors import UserError
from launcher.inference.finished_run import FinishedRun, build_network
from launcher.recipe.protocols import Split, Splits
from launcher.recipe.transforms import evaluation
from launcher.text import plural
from launcher.training.chunks import in_pieces
from launcher.training.data_order import epoch_order, seed_for
from launcher.training.images import evaluation_loader

if TYPE_CHECKING:
    from accelerate import Accelerator

MOST_TRAINING_IMAGES = 20_000
"""The most images whose features are held: 164 MB for a backbone with 2,048 features. Of more images some are drawn."""
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of training and validation images, float32 (n, d) each."""

    train: torch.Tensor
    val: torch.Tensor
    """Features from the same weights as `train`."""
    val_now: torch.Tensor
    """Features from the weights that the run ended with."""
    of_training: torch.Tensor
    """int64 (n,): the indices of the training images that `train` is of."""
    weights: str
    """The weights of `train` and `val`, in words."""


def features_of(
    accelerator: Accelerator, finished: FinishedRun, splits: Splits, num_workers: int, report: Callable[[str], None]
) -> Features:
    """Compute features with the weights before training, which have not seen the labels.

    If these were random, or the checkpoint with them is gone, the weights after training are taken. This is one pass
    over the training images, and one or two over the validation images.
    """
    model = build_network(finished, len(splits.names))
    of_training = torch.arange(len(splits.train))
    if len(of_training) > MOST_TRAINING_IMAGES:
        order = epoch_order(len(of_training), seed_for("explained", finished.recipe.seed), 0)
        of_training = torch.from_numpy(order[:MOST_TRAINING_IMAGES]).sort().values

    def of(backbone: nn.Module, split: Split, indices: torch.Tensor) -> torch.Tensor:
        return _features(accelerator, finished, backbone, split, indices.tolist(), num_workers)

    everything = torch.arange(len(splits.val))
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    report(f"{finished.rundir.path}: features of {plural(len(splits.val), 'validation image')}")
    val_now = of(backbone, splits.val, everything)
    before, why = _before_training(finished)
    changed = [
        name for name, tensor in backbone.state_dict().items() if name in before and not before[name].equal(tensor)
    ]
    weights, val = f"the weights after training ({why})" if why else "the weights before training", val_now
    if changed:
        backbone.load_state_dict(before)
        val = of(backbone, splits.val, everything)
    report(f"{finished.rundir.path}: features of {plural(len(of_training), 'training image')}, from {weights}")
    return Features(of(backbone, splits.train, of_training), val, val_now, of_training, weights)


def _before_training(finished: FinishedRun) -> tuple[dict[str, torch.Tensor], str]:
    """Return the state of the backbone before training, or an empty one and why it is missing."""
    if _was_random(finished):
        return {}, "those before it were random"
    try:
        base = finished.rundir.checkpoints.load_base()
    except UserError as error:
        return {}, f"those before it are gone: {'; '.join(error.problems)}"
    names = {name: tensor for name, tensor in base.items() if name.startswith("backbone.")}
    return {name.removeprefix("backbone."): tensor for name, tensor in names.items()}, ""


def _was_random(finished: FinishedRun) -> bool:
    recipe: dict[str, Any] = json.loads(finished.rundir.recipe_json.read_text(encoding="utf-8"))
    backbone = recipe.get("backbone")
    return isinstance(backbone, dict) and "weights" in backbone and backbone["weights"] is None


@torch.no_grad()
def _features(
    accelerator: Accelerator, finished: FinishedRun, backbone: nn.Module, split: Split, indices: list[int], workers: int
) -> torch.Tensor:
    images = Subset(split.images, np.array(indices, dtype=np.int64))
    loader = evaluation_loader(
        Split(images, split.targets[indices]),
        evaluation(finished.preprocessing),
        batch_size=BATCH,
        process_index=0,
        num_processes=1,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
    )
    backbone = backbone.to(accelerator.device).to(memory_format=torch.channels_last)
    pieces = []
    try:
        for batch in loader:
            with accelerator.autocast():
                made = in_pieces(backbone, batch.to(accelerator.device).images)
            pieces.append((made.flatten(2).mean(2) if made.ndim > 2 else made).float().cpu())
    finally:
        end_workers(loader)
        backbone.cpu()
    return torch.cat(pieces)
