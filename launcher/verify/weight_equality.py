"""The equality of the weights of two runs of one recipe, as far as rounding allows.

SGD moves a weight in proportion to its gradient, so rounding changes the weight as little as it changes the gradient.
Adam divides a gradient by its own size. Where the true gradient is zero, only rounding noise is left, and Adam turns it
into steps of up to the learning rate, in other directions for each division of the batch. There are two kinds:
- always zero: the key bias of attention (softmax ignores what is added to all scores of a query). Adam's own state
  holds the size of each value's gradient; for these values it is 1e-9 of that of the others.
- zero in one step, by chance, as the gradient of a value changes its sign: 4 of the 3.4 million values of
  EfficientNet-lite0 after 6 steps on digits, up to 2e-5, while the root mean square over a tensor stays below 1e-6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from launcher.inference.run_records import read_rows
from launcher.recipe.optim import SGD
from launcher.recipe.recipe import Recipe
from launcher.training.checkpoint import Checkpoints, State

TOLERANCE = 1e-5
"""The difference between divisions of the batch where gradients are not noise: float32 rounding, grown over a few
steps."""
NOISE = 1e-6
"""The size of a gradient, relative to the root mean square of all gradients, up to which it is rounding noise. Sound
ones had 1e-3 or more in networks that were made for tests, where the key bias had 1e-9. Values that happen to have less
in a large network (0.4 % of EfficientNet-lite0 have less than 1e-4) do no harm: they are held to twice the learning
rates."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of a tensor between two runs."""

    tensor: str
    largest: float
    over_tolerance: int
    """The number of values that differ by more than TOLERANCE."""
    values: int
    is_rounding: bool
    """True if rounding, and what the optimizer makes of it, explains the difference."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The differences between two runs."""

    differences: tuple[Difference, ...]
    """One difference for each tensor, the largest first."""

    @property
    def broken(self) -> list[Difference]:
        """The differences that rounding does not explain."""
        return [difference for difference in self.differences if not difference.is_rounding]

    @property
    def noise(self) -> list[Difference]:
        """The differences with values over the tolerance that rounding noise explains."""
        return [difference for difference in self.differences if difference.over_tolerance and difference.is_rounding]


def compare(reference: Path, other: Path, recipe: Recipe) -> Comparison:
    """Compare the last checkpoints of two run dirs: weights, buffers, and averaged weights if there are any."""
    ours, theirs = _last_state(reference), _last_state(other)
    # Twice, as the two runs may have gone in opposite directions.
    farthest = TOLERANCE if isinstance(recipe.optim, SGD) else TOLERANCE + 2 * _way(reference, recipe)
    noise = noise_by_name(ours.optimizer["state"])
    differences = []
    for average, mine, yours in (("", ours.model, theirs.model), (" (averaged)", ours.ema or {}, theirs.ema or {})):
        for name, tensor in mine.items():
            difference = (tensor.double() - yours[name].double()).abs()
            sound = difference[~noise[name]] if name in noise else difference
            typical = float(sound.square().mean().sqrt()) if sound.numel() else 0.0
            largest = float(difference.max())
            differences.append(
                Difference(
                    tensor=f"{name}{average}",
                    largest=largest,
                    over_tolerance=int((difference > TOLERANCE).sum()),
                    values=difference.numel(),
                    is_rounding=largest <= farthest and typical <= TOLERANCE,
                )
            )
    return Comparison(tuple(sorted(differences, key=lambda difference: -difference.largest)))


def noise_by_name(state: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Return which values have a gradient that is rounding noise, by parameter name, as Adam's second moments tell.

    `state` is the optimizer's, by parameter name. The result is empty for an optimizer that keeps no such moments.
    """
    sizes = {name: entries["exp_avg_sq"].double().sqrt() for name, entries in state.items() if "exp_avg_sq" in entries}
    if not sizes:
        return {}
    scale = torch.cat([size.flatten() for size in sizes.values()]).square().mean().sqrt()
    return {name: size <= NOISE * scale for name, size in sizes.items()}


def furthest(reference: Path, other: Path) -> tuple[str, float]:
    """Return the tensor of `final/` that differs most between two runs, and by how much."""
    ours, theirs = (load_file(path / "final/model.safetensors") for path in (reference, other))
    differences = {name: float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours}
    name = max(differences, key=lambda key: differences[key])
    return name, differences[name]


def _last_state(run_dir: Path) -> State:
    checkpoints = Checkpoints(run_dir / "checkpoints")
    newest = checkpoints.newest()
    assert newest is not None, f"{run_dir}: a run that ended has a checkpoint"
    return checkpoints.load(newest)


def _way(run_dir: Path, recipe: Recipe) -> float:
    """Return how far Adam can have moved a weight: by about the learning rate in each step, whatever the gradient."""
    rows = read_rows(run_dir / "metrics.jsonl")
    largest_scale = max(scale for phase in recipe.freeze_plan for _, scale in phase.rules)
    return float(largest_scale * sum(row["lr"] for row in rows if row["event"] == "step"))
