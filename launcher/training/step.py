"""The gradient of a step: forward and backward passes, clipping, and the check that it is finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from launcher.errors import UserError
from launcher.text import plural
from launcher.training.feature_cache.loader import FeatureBatch
from launcher.training.images import Batch
from launcher.training.mixup import mix
from launcher.training.nonfinite import NonFiniteGradientError, where
from launcher.training.run import PhaseState, Run

SKIPS_OF_THE_SCALER = 30
"""Number of successive steps that fp16's gradient scaler may skip in search of its scale, which it halves each time."""


def inputs_of(
    run: Run, state: PhaseState, batch: Batch | FeatureBatch
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return the inputs of `state.wrapped` for a batch, and the batch's targets.

    The inputs are images, or the boundary tensors behind the frozen prefix, either read or computed. MixUp and CutMix,
    if the recipe has them, mix newly augmented images. If the phase has fixed images, MixUp mixes the boundary tensors
    instead, because mixed images are not stored.
    """
    device, epoch = run.accelerator.device, state.resolved.first_epoch + run.progress.epoch
    if isinstance(batch, FeatureBatch):
        batch = batch.to(device)
        return _mixed(run, batch.features, batch.indices, batch.targets, epoch)
    fixed = state.source.fixed_views is not None
    if state.prefix is not None and (fixed or not run.prepared.mixing):
        batch = batch.to(device, normalised=False)
        boundary = state.prefix.of(batch)
        return _mixed(run, boundary, batch.indices, batch.targets, epoch) if fixed else (boundary, batch.targets)
    batch = batch.to(device)
    (images,), targets = _mixed(run, (batch.images,), batch.indices, batch.targets, epoch)
    return (images,) if state.prefix is None else state.prefix.of(dataclasses.replace(batch, images=images)), targets


def _mixed(
    run: Run, tensors: tuple[torch.Tensor, ...], indices: torch.Tensor, targets: torch.Tensor, epoch: int
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return tensors and targets after MixUp or CutMix, or unchanged if the recipe has neither."""
    mixing = run.prepared.mixing
    if not mixing:
        return tensors, targets
    encoded, seed = run.prepared.task.encode(targets), run.recipe.seed
    mixup_alpha, cutmix_alpha = mixing.mixup_alpha, mixing.cutmix_alpha
    return mix(tensors, indices, encoded, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, seed=seed, epoch=epoch)


def forward_backward(
    run: Run, state: PhaseState, inputs: Sequence[torch.Tensor], targets: torch.Tensor, taken: int, *, is_empty: bool
) -> torch.Tensor:
    """Add the gradient of these samples, of `taken` in the global batch, and return the sum of their losses."""
    losses = run.prepared.task.loss(state.wrapped(*inputs), targets)
    # An empty micro-batch holds one sample, so that the processes stay in step, with weight 0.
    loss = losses.sum() * (0.0 if is_empty else 1.0)
    # DDP averages the gradient over the processes, but it is to be summed over them; hence the factor.
    run.accelerator.backward(loss * (run.accelerator.num_processes / taken))
    return loss.detach()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on a gradient: `sound` if the step may be taken."""

    sound: bool
    finite: torch.Tensor | None = None
    """bool () on the device: whether the gradient is finite, if that is to be checked later; otherwise None."""


def clipped(run: Run, state: PhaseState, step_in_epoch: int) -> Verdict:
    """Clip the averaged gradient, and return whether the step may be taken.

    After DDP has averaged the gradient, it is the same on all processes, so all reach the same verdict without
    communication. If a gradient that is not finite ends the run, the device is not waited for: its answer is read
    together with the losses, and so before anything is evaluated or saved. Raise a UserError that names the step and
    its samples if too many steps were skipped.
    """
    accelerator, recipe, progress = run.accelerator, run.recipe, run.progress
    if accelerator.scaler is not None:
        return _clipped_and_scaled(run, state, step_in_epoch)
    gradients = [p.grad for p in state.wrapped.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = norm.isfinite()
    if recipe.on_nonfinite == "skip" and not bool(finite):
        progress.skipped_steps += 1
        place = where(run, state.resolved, progress.step + 1, step_in_epoch)
        if progress.skipped_steps > recipe.max_skipped_steps:
            raise UserError(
                f"{place}; {plural(recipe.max_skipped_steps, 'step was', 'steps were', spec='')} skipped before it, "
                "which is all that max_skipped_steps allows"
            )
        run.screen.line(f"{place}; skipped ({progress.skipped_steps})", style="yellow")
        return Verdict(sound=False)
    if recipe.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(state.wrapped.parameters(), recipe.clip_norm, norm)
    return Verdict(sound=True, finite=finite if recipe.on_nonfinite == "stop" else None)


def _clipped_and_scaled(run: Run, state: PhaseState, step_in_epoch: int) -> Verdict:
    # The scaler checks for infinities itself and skips such steps; only many skips in a row mean a broken loss.
    state.scaler_skips = state.scaler_skips + 1 if state.optimizer.step_was_skipped else 0
    if state.scaler_skips > SKIPS_OF_THE_SCALER:
        place = where(run, state.resolved, run.progress.step + 1, step_in_epoch)
        raise NonFiniteGradientError(f"{place} at any scale of fp16; try mixed_precision=bf16")
    if run.recipe.clip_norm is not None:
        run.accelerator.clip_grad_norm_(state.wrapped.parameters(), run.recipe.clip_norm)
    return Verdict(sound=True)
