"""Optimizers and learning-rate schedules. A schedule is a pure function of the optimizer step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field

from launcher.recipe.part import part

if TYPE_CHECKING:
    import torch

_Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


@part
class AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), without weight decay on norms and biases."""

    lr: float = Field(default=1e-3, gt=0, le=1e30)
    """Learning rate of parameters with lr_scale 1. Its bound is 1e30 because Adam divides it by 1 - beta, and the
    largest float32 is 3.4e38."""
    weight_decay: float = Field(default=0.05, ge=0, le=1e30)
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0, le=1e30)
    lr_batch_size: int | None = Field(default=None, ge=1)
    """Batch size that `lr` is meant for; the rate is scaled by batch_size / lr_batch_size. None: `lr` is not scaled."""

    def base_lr(self, batch_size: int) -> float:
        return _for_batch(self.lr, self.lr_batch_size, batch_size)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(
            groups, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, foreach=True
        )


@part
class SGD:
    """Stochastic gradient descent with momentum, Nesterov's by default, without weight decay on norms and biases."""

    lr: float = Field(default=0.01, gt=0)
    """Learning rate of parameters with lr_scale 1."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    """Nesterov momentum; has no effect if `momentum` is 0."""
    weight_decay: float = Field(default=1e-4, ge=0, le=1e30)
    lr_batch_size: int | None = Field(default=None, ge=1)
    """Batch size that `lr` is meant for; the rate is scaled by batch_size / lr_batch_size. None: `lr` is not scaled."""

    def base_lr(self, batch_size: int) -> float:
        return _for_batch(self.lr, self.lr_batch_size, batch_size)

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
            foreach=True,
        )


def _for_batch(lr: float, lr_batch_size: int | None, batch_size: int) -> float:
    return lr if lr_batch_size is None else lr * batch_size / lr_batch_size


@part
class WarmupCosine:
    """Linear warm-up, then half a cosine (arXiv 1608.03983) down to `final_scale`."""

    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of the phase's steps spent on the warm-up."""
    final_scale: float = Field(default=0.01, ge=0, le=1)

    def scale(self, step: int, steps: int, steps_per_epoch: int) -> float:
        warmup = round(self.warmup_fraction * steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = (step - warmup) / max(1, steps - warmup - 1)
        return self.final_scale + (1 - self.final_scale) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


@part
class Constant:
    """A constant rate after an optional linear warm-up."""

    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)

    def scale(self, step: int, steps: int, steps_per_epoch: int) -> float:
        warmup = round(self.warmup_fraction * steps)
        return min(1.0, (step + 1) / (warmup + 1))


@part
class Step:
    """A rate that is multiplied by `gamma` after every `every_epochs` epochs of the phase."""

    every_epochs: int = Field(default=7, ge=1)
    gamma: float = Field(default=0.1, gt=0, le=1)

    def scale(self, step: int, steps: int, steps_per_epoch: int) -> float:
        return float(self.gamma ** (step // steps_per_epoch // self.every_epochs))


@part
class OneCycle:
    """The one-cycle schedule (arXiv 1708.07120): cosine from 1/start_divisor up to 1, then down to 1/final_divisor."""

    rising_fraction: float = Field(default=0.3, gt=0, lt=1)
    start_divisor: float = Field(default=25.0, ge=1)
    final_divisor: float = Field(default=1e5, ge=1)

    def scale(self, step: int, steps: int, steps_per_epoch: int) -> float:
        peak = self.rising_fraction * max(1, steps - 1)
        if step <= peak:
            low, progress = 1 / self.start_divisor, step / peak
            return low + (1 - low) * (1 - math.cos(math.pi * progress)) / 2
        low, progress = 1 / self.final_divisor, (step - peak) / (steps - 1 - peak)
        return low + (1 - low) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
