"""The trained part of a phase's network, compiled and wrapped for training."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher.training.feature_cache.frozen_part import Frozen
from launcher.training.model import TransferModel
from launcher.training.run import Run


def wrap(run: Run, model: TransferModel, prefix: Frozen | None) -> nn.Module:
    """Return the network, or the layers behind its frozen prefix, wrapped by Accelerate to average gradients.

    If the recipe says so, the layers are compiled first.
    """
    trained = model if prefix is None else prefix.tail
    if run.recipe.compile:
        for part in (trained, *([prefix.prefix.module] if prefix else [])):
            part.compile()  # in place, so that the parameters keep their names
    wrapped: nn.Module = run.accelerator.prepare_model(trained)
    if isinstance(wrapped, DistributedDataParallel):
        # BatchNorm's buffers are averaged before they are used; broadcasting those of process 0 in each forward pass
        # would override the others.
        wrapped.broadcast_buffers = False
    return wrapped
