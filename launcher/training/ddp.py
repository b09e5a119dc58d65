"""The trained part of a phase's network, folded, compiled and wrapped for training."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher.training.feature_cache.frozen_part import Frozen
from launcher.training.folding import fold_in_training, fold_whole
from launcher.training.model import TransferModel, set_train_mode
from launcher.training.preflight import Prepared, ResolvedPhase
from launcher.training.run import Run


def wrap(run: Run, model: TransferModel, resolved: ResolvedPhase, prefix: Frozen | None) -> nn.Module:
    """Return the network, or the layers behind its frozen prefix, wrapped by Accelerate to average gradients.

    Norms are folded first and, if the recipe says so, the layers are compiled.
    """
    set_train_mode(model, resolved.phase.norm_statistics)
    fold(run.prepared, model, prefix)
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


def fold(prepared: Prepared, model: TransferModel, prefix: Frozen | None) -> None:
    """Fold BatchNorm layers that keep their statistics into the convolutions before them.

    `model` must already be in its mode for training, as set by `set_train_mode`.
    """
    sizes = prepared.batching.micro_batch_size, prepared.preprocessing.image_size
    if prefix is None:
        fold_whole(model, *sizes)
    else:
        fold_in_training(prefix.tail.of_training, model, *sizes, frozenset(prefix.prefix.module.modules()))
