"""Averages of trained weights, which may improve a run at the cost of a few evaluations.

A greedy soup (https://arxiv.org/abs/2203.05482) goes through the ingredients in the order of their validation metric
and adds each to the mean unless that makes it worse. Interpolation (https://arxiv.org/abs/2109.01903) is between the
network of which only the head was trained and the fine-tuned one; it often keeps more of the pretrained weights'
knowledge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from launcher.compat import is_batch_norm
from launcher.errors import UserError
from launcher.inference.finished_run import FinishedRun
from launcher.text import number
from launcher.training.best import Mode, rank_of
from launcher.training.checkpoint import Checkpoints

Weights = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Ingredient:
    """Weights that may enter a mean."""

    name: str
    """Name such as "runs/pets step 120"."""
    weights: Weights
    """Tensors by the names of TransferModel's state."""
    is_head_alone: bool = False
    """True if the backbone is as it was before training."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A mean of weights, or an ingredient alone, that was judged."""

    name: str
    weights: Weights
    metrics: dict[str, float]
    of: tuple[str, ...]
    """Names of its ingredients."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """The metric by which weights are judged, and their evaluation."""

    evaluate: Callable[[Weights], dict[str, float]]
    metric: str
    mode: Mode

    def rank(self, metrics: dict[str, float]) -> tuple[float, float]:
        """Return a key by which the better of two results is the larger: by the metric, then by the loss."""
        return rank_of(metrics, self.metric, self.mode)

    def shown(self, metrics: dict[str, float]) -> str:
        """Return the metrics that decide, as text."""
        return shown_result(metrics, self.metric)


def shown_result(metrics: Mapping[str, float], metric: str) -> str:
    """Return the metrics that decide between two results, as text: "accuracy 0.9542, loss 0.1210"."""
    loss = f", loss {number(metrics['loss'])}" if "loss" in metrics and metric != "loss" else ""
    return f"{metric} {number(metrics[metric])}{loss}"


def ingredients_of(finished: FinishedRun, final: Weights) -> list[Ingredient]:
    """Return the weights of `final/` and of the run's complete checkpoints, each state once.

    `final` holds the weights of `final/` by the names of the run's network.
    """
    path, checkpoints = finished.rundir.path, finished.rundir.checkpoints
    ingredients = [Ingredient(f"{path} final", final)]
    for folder in sorted(checkpoints.folder.glob("step-*")):
        try:
            state = Checkpoints(checkpoints.folder).load(folder, only_model=True)
        except UserError:
            continue
        weights = state.model | (state.ema or {})
        if not any(_same(weights, other.weights) for other in ingredients):
            head_alone = state.progress.head_step == state.progress.step
            ingredients.append(Ingredient(f"{path} step {state.progress.step}", weights, head_alone))
    return ingredients


def check_alike(ingredients: Sequence[Ingredient]) -> None:
    """Raise UserError if the weights belong to different networks."""
    first = ingredients[0]
    problems = []
    for other in ingredients[1:]:
        shared = first.weights.keys() & other.weights.keys()
        names = {name for name in shared if first.weights[name].shape != other.weights[name].shape}
        if names := names | (first.weights.keys() ^ other.weights.keys()):
            problems.append(f"{other.name}: another network than {first.name} ({sorted(names)[0]} differs)")
    if problems:
        raise UserError(*problems)


def greedy_soup(ingredients: Sequence[Ingredient], judge: Judge, report: Callable[[str], None]) -> list[Candidate]:
    """Return each ingredient alone, the best first, and then the soup, if it has more than one ingredient."""
    alone = [Candidate(i.name, i.weights, judge.evaluate(i.weights), (i.name,)) for i in ingredients]
    alone.sort(key=lambda candidate: judge.rank(candidate.metrics), reverse=True)
    for candidate in alone:
        report(f"{candidate.name}: {judge.shown(candidate.metrics)}")
    soup, taken = alone[0], [alone[0]]
    for candidate in alone[1:]:
        weights = mean_of([part.weights for part in (*taken, candidate)])
        metrics = judge.evaluate(weights)
        keeps = judge.rank(metrics) >= judge.rank(soup.metrics)
        report(f"soup with {candidate.name}: {judge.shown(metrics)}{'' if keeps else ', left out'}")
        if keeps:
            taken.append(candidate)
            soup = Candidate(f"soup of {len(taken)}", weights, metrics, tuple(part.name for part in taken))
    return [*alone, soup] if len(taken) > 1 else alone


def interpolations(
    probe: Ingredient, tuned: Ingredient, points: int, judge: Judge, report: Callable[[str], None]
) -> list[Candidate]:
    """Return the `points` - 1 evenly spaced means between two ingredients, without the ends."""
    candidates = []
    for point in range(1, points):
        share = point / points
        weights = mean_of([probe.weights, tuned.weights], [1 - share, share])
        metrics = judge.evaluate(weights)
        name = f"{share:.2f} of the way from {probe.name} to {tuned.name}"
        report(f"{name}: {judge.shown(metrics)}")
        candidates.append(Candidate(name, weights, metrics, (probe.name, tuned.name)))
    return candidates


def mean_of(weights: Sequence[Weights], shares: Sequence[float] | None = None) -> dict[str, torch.Tensor]:
    """Return the weighted mean, computed in float64; integers (batch counts of norms) are those of the first."""
    shares = shares or [1 / len(weights)] * len(weights)
    mixed = {}
    for name, first in weights[0].items():
        if first.is_floating_point():
            total = sum(share * part[name].double() for share, part in zip(shares, weights, strict=True))
            assert isinstance(total, torch.Tensor)
            mixed[name] = total.to(first.dtype)
        else:
            mixed[name] = first.clone()
    return mixed


def statistics_differ(ingredients: Sequence[Ingredient], model: nn.Module) -> bool:
    """Return whether BatchNorm's statistics differ between ingredients.

    If they do, their mean is not the statistics of the mean weights.
    """
    norms = [name for name, module in model.named_modules() if is_batch_norm(module)]
    names = [f"{norm}.{what}" for norm in norms for what in ("running_mean", "running_var")]
    first = ingredients[0].weights
    return any(not other.weights[name].equal(first[name]) for other in ingredients for name in names if name in first)


def _same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())
