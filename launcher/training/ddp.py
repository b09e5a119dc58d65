"""What of a phase's network trains, as it is called in training."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from launcher.training.feature_cache.frozen_part import Frozen
from launcher.training.folding import fold_in_training, fold_whole
from launcher.training.model import TransferModel, set_train_mode
from launcher.training.preflight import Prepared, ResolvedPhase
from launcher.training.run import Run


def wrap(run: Run, model: TransferModel, resolved: ResolvedPhase, prefix: Frozen | None) -> nn.Module:
    """The network, or what of it is behind its frozen prefix, after Accelerate: through it gradients are averaged."""
    set_train_mode(model, resolved.phase.norm_statistics)
    fold(run.prepared, model, prefix)
    trained = model if prefix is None else prefix.tail
    if run.recipe.compile:
        for part in (trained, *([prefix.prefix.module] if prefix else [])):
            part.compile()  # in place: the names of parameters stay
    wrapped: nn.Module = run.accelerator.prepare_model(trained)
    if isinstance(wrapped, DistributedDataParallel):
        # BatchNorm's buffers are averaged before they are used; rank 0's at each forward would override the others'.
        wrapped.broadcast_buffers = False
    return wrapped


def fold(prepared: Prepared, model: TransferModel, prefix: Frozen | None) -> None:
    """BatchNorm with kept statistics into the convolutions before it; `model` is in the mode of training."""
    sizes = prepared.batching.micro_batch_size, prepared.preprocessing.image_size
    if prefix is None:
        fold_whole(model, *sizes)
    else:
        fold_in_training(prefix.tail.of_training, model, *sizes, frozenset(prefix.prefix.module.modules()))
