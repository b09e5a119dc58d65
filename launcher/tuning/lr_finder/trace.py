"""The learning rate range test (Smith, https://arxiv.org/abs/1506.01186): what it tries and what it saw.

The rate rises by the same factor at each step until the loss diverges. `lr_trial` takes the steps. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from launcher.errors import UserError
from launcher.recipe.part import part
from launcher.recipe.recipe import Recipe

LEAST_STEPS = 10
SMOOTHING = 0.98
"""Share of the average so far in each new one, as in fastai."""
DIVERGED = 3.0
"""The test ends where the smoothed loss is above the lowest by so many times the lowest, as in fastai. After a head in
closed form, which may fit the training images almost without loss, by so many times its loss on images held out."""
LEAST_BEFORE_DIVERGED = 0.1
"""Of the steps: before them the average holds too few losses for one to mean anything."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Which rates are tried, as values of the recipe's `optim.lr`."""

    first: float = 1e-6
    last: float = 10.0
    steps: int = 100

    def check(self) -> None:
        """Raises UserError with all that is wrong."""
        found = []
        for name, value in (("--from", self.first), ("--to", self.last)):
            if not (math.isfinite(value) and value > 0):
                found.append(f"{name} {value:g}: a learning rate is a number above 0")
        if not found and self.first >= self.last:
            found.append(f"--from {self.first:g} --to {self.last:g}: the rate rises, so --from must be below --to")
        if self.steps < LEAST_STEPS:
            found.append(f"--steps {self.steps}: too few to see a curve; give {LEAST_STEPS} or more (100 is usual)")
        if found:
            raise UserError(*found)

    def lrs(self) -> list[float]:
        """(steps,), each the same factor above the one before."""
        factor = self.last / self.first
        return [self.first * factor ** (step / (self.steps - 1)) for step in range(self.steps)]


@part
class Rates:
    """A schedule that gives step k of a phase its k-th factor."""

    scales: tuple[float, ...]

    def scale(self, step: int, steps: int, steps_per_epoch: int) -> float:
        return self.scales[step]


Start = Literal["recipe", "closed form", "new head"]
"""Where a phase's test starts. "recipe": as the run does. The others stand in for phases that come before it and are
not trained here: a head in closed form, or as it is before any training, on the pretrained backbone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """What a phase's test saw."""

    number: int
    """Of the phase, 0-based."""
    phase: str
    start: Start
    lr_scales: tuple[float, ...]
    """Of the groups that train, from the highest."""
    lrs: tuple[float, ...]
    """Of the steps that were taken, as values of `optim.lr`."""
    losses: tuple[float, ...]
    """Training loss of each step before its update: the mean over the samples of its global batch."""
    least_loss: float
    """Lower losses are no better: after a head in closed form, its loss on images held out; otherwise 0."""
    steps: int
    """As many were asked for."""
    diverged: bool
    """It ended because the loss diverged, or because a gradient was not finite."""

    @property
    def smoothed(self) -> list[float]:
        average = Average()
        return [average.add(loss) for loss in self.losses]


class Average:
    """Exponential moving average, without the bias of its start (as Adam's; fastai's AvgSmoothLoss)."""

    def __init__(self) -> None:
        self._value, self._weight = 0.0, 0.0

    def add(self, value: float) -> float:
        """The average with one value more."""
        self._value = SMOOTHING * self._value + (1 - SMOOTHING) * value
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        return self._value / self._weight


def check_optim(recipe: Recipe) -> None:
    """Raises UserError for an optimizer of the user's own that has no field `lr`."""
    optim = recipe.optim
    if not any(field.name == "lr" for field in dataclasses.fields(optim)):  # type: ignore[arg-type]
        raise UserError(f"optim: {type(optim).__name__} has no field 'lr', which the test would vary")


def scales_of(recipe: Recipe, lrs: Sequence[float]) -> tuple[float, ...]:
    """Factors on the recipe's own base rate that train as `optim.lr` of each of `lrs` would (batch size included)."""
    optim: Any = recipe.optim
    base = optim.base_lr(recipe.batch_size)
    return tuple(dataclasses.replace(optim, lr=lr).base_lr(recipe.batch_size) / base for lr in lrs)


def chosen_phases(recipe: Recipe, number: int | None) -> tuple[int, ...]:
    """0-based numbers of the phases to test; `number` counts from 1. Raises UserError where there is no such phase."""
    plan = recipe.freeze_plan
    if number is None:
        return tuple(range(len(plan)))
    if not 1 <= number <= len(plan):
        there = ", ".join(f"{place} ({phase.name})" for place, phase in enumerate(plan, 1))
        raise UserError(f"--phase {number}: no such phase; the freeze plan has {there}")
    return (number - 1,)
