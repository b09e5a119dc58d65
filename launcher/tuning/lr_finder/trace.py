"""Learning rate range test (Smith, https://arxiv.org/abs/1506.01186): the rates it tries and the losses it sees.

The rate rises by the same factor at each step until the loss diverges. `range_test` takes the steps. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from launcher.errors import UserError
from launcher.recipe.recipe import Recipe

LEAST_STEPS = 10
SMOOTHING = 0.98
"""Share of the average so far in each new one, as in fastai."""
DIVERGED = 3.0
"""Multiple of the lowest smoothed loss by which the smoothed loss must exceed it to end the test, as in fastai.

After a head in closed form, which may fit the training images almost without loss, it is a multiple of that head's loss
on held-out images.
"""
LEAST_BEFORE_DIVERGED = 0.1
"""Share of the steps before which the average holds too few losses for one to mean anything."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """Range of the rates that are tried, as values of the recipe's `optim.lr`."""

    first: float = 1e-6
    last: float = 10.0
    steps: int = 100

    def check(self) -> None:
        """Check the range.

        Raises:
            UserError: The range is wrong; there is one line for each reason.
        """
        problems = []
        for name, value in (("--from", self.first), ("--to", self.last)):
            if not (math.isfinite(value) and value > 0):
                problems.append(f"{name} {value:g}: a learning rate is a number above 0")
        if not problems and self.first >= self.last:
            problems.append(f"--from {self.first:g} --to {self.last:g}: the rate rises, so --from must be below --to")
        if self.steps < LEAST_STEPS:
            problems.append(f"--steps {self.steps}: too few to see a curve; give {LEAST_STEPS} or more (100 is usual)")
        if problems:
            raise UserError(*problems)

    def lrs(self) -> list[float]:
        """Return the rates (steps,), each the same factor above the one before."""
        factor = self.last / self.first
        return [self.first * factor ** (step / (self.steps - 1)) for step in range(self.steps)]


Start = Literal["recipe", "closed form", "new head"]
"""State in which a phase's test starts.

"recipe" stands for the start that a run has. The others stand in for the phases before this one, which are not trained
here: a head in closed form, or as it is before any training, on the pretrained backbone.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """Record of a phase's test."""

    number: int
    """Number of the phase, 0-based."""
    phase: str
    start: Start
    lr_scales: tuple[float, ...]
    """Factors of the groups that train, from the highest."""
    lrs: tuple[float, ...]
    """Rates of the steps that were taken, as values of `optim.lr`."""
    losses: tuple[float, ...]
    """Training loss of each step before its update: the mean over the samples of its global batch."""
    least_loss: float
    """Loss below which lower is no better: after a head in closed form, its loss on held-out images; otherwise 0."""
    steps: int
    """Number of steps that were asked for."""
    diverged: bool
    """True if the test ended because the loss diverged, or because a gradient was not finite."""

    @property
    def smoothed(self) -> list[float]:
        """Smoothed losses, one per step."""
        average = Average()
        return [average.add(loss) for loss in self.losses]


class Average:
    """Exponential moving average without the bias of its start (as Adam's; fastai's AvgSmoothLoss)."""

    def __init__(self) -> None:
        self._value, self._weight = 0.0, 0.0

    def add(self, value: float) -> float:
        """Add a value, and return the average."""
        self._value = SMOOTHING * self._value + (1 - SMOOTHING) * value
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        return self._value / self._weight


def check_optim(recipe: Recipe) -> None:
    """Check that the recipe's optimizer has a learning rate to vary.

    Raises:
        UserError: It is an optimizer of the user's own that has no field `lr`.
    """
    optim = recipe.optim
    if not any(field.name == "lr" for field in dataclasses.fields(optim)):  # type: ignore[arg-type]
        raise UserError(f"optim: {type(optim).__name__} has no field 'lr', which the test would vary")


def scales_of(recipe: Recipe, lrs: Sequence[float]) -> tuple[float, ...]:
    """Return factors on the recipe's own base rate that train as `optim.lr` of each of `lrs` would.

    The batch size is taken into account.
    """
    optim: Any = recipe.optim
    base = optim.base_lr(recipe.batch_size)
    return tuple(dataclasses.replace(optim, lr=lr).base_lr(recipe.batch_size) / base for lr in lrs)


def chosen_phases(recipe: Recipe, number: int | None) -> tuple[int, ...]:
    """Return the 0-based numbers of the phases to test: all, or the one at `number`, which counts from 1.

    Raises:
        UserError: There is no such phase.
    """
    plan = recipe.freeze_plan
    if number is None:
        return tuple(range(len(plan)))
    if not 1 <= number <= len(plan):
        there = ", ".join(f"{place} ({phase.name})" for place, phase in enumerate(plan, 1))
        raise UserError(f"--phase {number}: no such phase; the freeze plan has {there}")
    return (number - 1,)
