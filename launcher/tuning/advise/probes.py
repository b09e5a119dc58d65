"""Closed-form probes: the quality of ridge regression on the features of a boundary, on the validation images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from launcher.data.sources import Subset
from launcher.errors import UserError
from launcher.metrics.bootstrap import intervals
from launcher.recipe.protocols import BuiltTask, Preprocessing, Split
from launcher.recipe.transforms import evaluation
from launcher.report.inspect.grad_cam import as_map
from launcher.training.closed_form import HELD_OUT, RELATIVE_L2S, goals_of, losses_of, scales_for
from launcher.training.data_order import epoch_order, seed_for
from launcher.training.evaluation import metrics_of
from launcher.training.images import EvaluationImages, collate
from launcher.training.ridge import Moments, RidgeOfMoments, RidgeOfSamples

BATCH = 16
FINAL = ""
"""Name of the last boundary, the backbone's own output."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """Closed-form head on the features of a boundary, and its quality."""

    width: int
    """Number of features, pooled over places."""
    value: float
    low: float
    high: float
    """End of a 95 % interval over draws of the validation images, which begins at `low`."""
    weight: torch.Tensor
    """Weight (outputs, width), multiplied, as the bias is, by the scale with the lowest loss."""
    bias: torch.Tensor


def some_of(split: Split, most: int, seed: int) -> Split:
    """Return at most `most` images of a split, drawn by the seed."""
    if len(split) <= most:
        return split
    chosen = np.sort(epoch_order(len(split), seed_for("advised", seed), 0)[:most])
    return Split(Subset(split.images, chosen), split.targets[chosen])


@torch.no_grad()
def features_at(
    accelerator: Accelerator, backbone: nn.Module, names: Sequence[str], split: Split, preprocessing: Preprocessing
) -> dict[str, torch.Tensor]:
    """Return features (n, width) of each named module and of the backbone itself, in one pass over the images."""
    backbone = backbone.to(accelerator.device).to(memory_format=torch.channels_last).eval()
    dataset = EvaluationImages(split, evaluation(preprocessing))
    seen: dict[str, torch.Tensor] = {}
    features: dict[str, list[torch.Tensor]] = {name: [] for name in (*names, FINAL)}

    def keeper(name: str) -> Any:
        return lambda _, __, output: seen.__setitem__(name, _pooled(output))

    hooks = [backbone.get_submodule(name).register_forward_hook(keeper(name)) for name in names]
    try:
        for begin in range(0, len(split), BATCH):
            rows = [dataset[index] for index in range(begin, min(begin + BATCH, len(split)))]
            images = collate(rows, dataset.transform).to(accelerator.device).images
            with accelerator.autocast():
                seen[FINAL] = _pooled(backbone(images))
            for name, values in features.items():
                values.append(seen[name].float().cpu())
    finally:
        for hook in hooks:
            hook.remove()
    return {name: torch.cat(values) for name, values in features.items()}


def _pooled(output: Any) -> torch.Tensor:
    made: torch.Tensor = output[0] if isinstance(output, tuple) else output
    to_map = as_map(made)
    if to_map is not None:
        return torch.as_tensor(to_map(made)).mean(dim=(2, 3))
    return made.flatten(2).mean(dim=2) if made.ndim > 2 else made


def probe(
    train: tuple[torch.Tensor, Split], val: tuple[torch.Tensor, Split], task: BuiltTask, kind: str, seed: int
) -> Probe:
    """Fit a probe to `train` (features, split), and measure it on `val`.

    Its L2 and scale are chosen on a fifth of `train`.

    Raises:
        UserError: The metric is not defined on this validation set.
    """
    features, split = train
    targets = torch.as_tensor(split.targets)
    goals = goals_of(task, kind, targets)
    aside = torch.zeros(len(features), dtype=torch.bool)
    count = max(1, int(HELD_OUT * len(features)))
    aside[torch.from_numpy(epoch_order(len(features), seed_for("held out", seed), 0)[:count])] = True
    fitted = _ridge(features[~aside], goals[~aside])
    scales = scales_for(kind)
    _, losses = losses_of(task, fitted, features[aside], targets[aside], scales)
    best, column = divmod(int(losses.nan_to_num(nan=torch.inf).argmin()), len(scales))
    ridge = _ridge(features, goals)
    weight, bias = ridge.fit(float(RELATIVE_L2S[best]) * ridge.mean_eigenvalue)
    weight, bias = (weight * scales[column]).float(), (bias * scales[column]).float()
    outputs = val[0] @ weight.T + bias
    metrics = metrics_of(task, outputs, val[1])
    name = task.monitor
    if name not in metrics:
        raise UserError(f"task: {name}, by which boundaries are compared, is not defined on this validation set")
    interval = intervals(task, outputs, torch.as_tensor(val[1].targets), {name: metrics[name]}, seed).get(name)
    low, high = (math.nan, math.nan) if interval is None else (interval.low, interval.high)
    return Probe(features.shape[1], metrics[name], low, high, weight, bias)


def _ridge(features: torch.Tensor, goals: torch.Tensor) -> RidgeOfSamples | RidgeOfMoments:
    if len(features) <= features.shape[1]:
        return RidgeOfSamples(features, goals)
    moments = Moments(features.shape[1], goals.shape[1])
    moments.add(features, goals)
    return RidgeOfMoments(moments)
