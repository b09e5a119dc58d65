"""Checks for values that are not finite: gradients, with their samples; weights after an update; and outputs."""

from __future__ import annotations

import torch

from launcher.errors import UserError
from launcher.text import listed, plural
from launcher.training.data_order import epoch_order
from launcher.training.preflight import ResolvedPhase
from launcher.training.run import PhaseState, Run

SAMPLES_NAMED = 8


class NonFiniteGradientError(UserError):
    """A gradient is not finite, on all processes alike, and the run has to end."""


class NonFiniteWeightsError(UserError):
    """Weights or outputs are not finite after an update, on all processes alike, and the run has to end."""


def where(run: Run, resolved: ResolvedPhase, step: int, step_in_epoch: int) -> str:
    """Describe a step (1-based) of the current epoch whose gradient is not finite, with the samples of its batch."""
    keys = run.keys
    order = epoch_order(keys.num_samples, keys.seed, resolved.first_epoch + run.progress.epoch)
    begin = step_in_epoch * keys.batching.batch_size
    samples = order[begin : begin + keys.taken(step_in_epoch)]
    images = run.prepared.splits.train.images
    named = ", ".join(f"{index} ({images.name(int(index))})" for index in samples[:SAMPLES_NAMED])
    others = f" and {len(samples) - SAMPLES_NAMED} more" if len(samples) > SAMPLES_NAMED else ""
    return f"step {step}: the gradient is not finite; its samples: {named}{others}"


def broken_weights(state: PhaseState) -> str | None:
    """Name the trained tensors, or their averages, that are not finite, or return None if all are.

    The check is needed even after finite gradients, because the update can overflow.
    """
    weights = state.model.state_dict()
    trained = {name: weights[name] for name in sorted(state.resolved.changing)}
    trained |= {
        f"the average of {name}": value for name, value in (state.average.values if state.average else {}).items()
    }
    trained = {name: value for name, value in trained.items() if value.is_floating_point()}
    # The device is asked once for all tensors.
    finite = torch.stack([value.isfinite().all() for value in trained.values()]).tolist()
    names = [name for name, is_finite in zip(trained, finite, strict=True) if not is_finite]
    return listed(names, 1) if names else None


def check_weights(run: Run, state: PhaseState) -> None:
    """Raise NonFiniteWeightsError if weights are not finite and the recipe says on_nonfinite="stop".

    All processes must call this; they hold the same weights.
    """
    if run.recipe.on_nonfinite == "stop" and (names := broken_weights(state)):
        raise NonFiniteWeightsError(
            f"step {run.progress.step}: the weights after it are not finite ({names}); nothing of it was saved; "
            "use a lower optim.lr, in another --run-dir"
        )


def broken_epoch(run: Run, state: PhaseState, outputs: torch.Tensor) -> str | None:
    """Return why the weights of this epoch cannot be the best, or None if they can.

    They cannot if they, or their outputs on the validation images, are not finite. Raise NonFiniteWeightsError for that
    if the recipe says on_nonfinite="stop".
    """
    check_weights(run, state)
    rows = int((~outputs.isfinite()).any(dim=1).sum())
    if rows == 0 and (names := broken_weights(state)) is None:
        return None
    of = plural(len(outputs), "validation image", spec="")
    what = f"its outputs for {rows} of {of} are" if rows else f"its weights are ({names})"
    if run.recipe.on_nonfinite == "stop":
        raise NonFiniteWeightsError(
            f"step {run.progress.step}: the network is broken: {what} not finite; nothing of it was saved; use a lower "
            "optim.lr, in another --run-dir"
        )
    return f"{what} not finite"
