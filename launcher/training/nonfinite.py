"""Gradients that are not finite: whose they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launcher.errors import UserError
from launcher.training.sampling import epoch_order

if TYPE_CHECKING:
    from launcher.training.preparation import ResolvedPhase
    from launcher.training.state import Run

SAMPLES_NAMED = 8


class NonFiniteGradientError(UserError):
    """A gradient is not finite, on all processes alike, and the recipe says that this ends the run."""


def where(run: Run, resolved: ResolvedPhase, step: int, step_in_epoch: int) -> str:
    """The run's step (1-based), in its current epoch, and which samples its global batch was made of."""
    keys = run.keys
    order = epoch_order(keys.num_samples, keys.seed, resolved.first_epoch + run.progress.epoch)
    begin = step_in_epoch * keys.batching.batch_size
    samples = order[begin : begin + keys.taken(step_in_epoch)]
    images = run.prepared.splits.train.images
    named = ", ".join(f"{index} ({images.name(int(index))})" for index in samples[:SAMPLES_NAMED])
    more = f" and {len(samples) - SAMPLES_NAMED} more" if len(samples) > SAMPLES_NAMED else ""
    return f"step {step}: the gradient is not finite; its samples: {named}{more}"
