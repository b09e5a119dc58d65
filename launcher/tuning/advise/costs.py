"""Costs of training from a boundary on: seconds and memory of a few real steps, and the size of the gradient."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import nn

from launcher.planning.costs import measure
from launcher.recipe.phases import Phase
from launcher.recipe.recipe import Recipe
from launcher.recipe.transforms import evaluation
from launcher.training.images import EvaluationImages, collate
from launcher.training.model import TransferModel, freeze, place
from launcher.training.preflight import Prepared, prepare
from launcher.tuning.advise.probes import Probe
from launcher.tuning.advise.stages import Stage

BATCH = 8
"""Number of images in a measured step."""


@dataclasses.dataclass(frozen=True)
class StageCost:
    """Cost of training all that lies behind a boundary."""

    trained: int
    """Number of parameters that train."""
    epoch: float
    """Seconds of an epoch with fresh images, its validation included."""
    first: float
    """Seconds to compute the features, once."""
    stored: float
    """Seconds of an epoch on stored features."""
    bytes_per_image: float
    """Bytes kept for the backward pass, per image."""


def plan_of(stages: Sequence[Stage]) -> tuple[Phase, ...]:
    """Return a phase of one epoch for each boundary, which trains all behind it; the last trains the head alone."""
    plan = []
    for number, stage in enumerate(stages):
        trains = tuple((f"backbone.{name}", 1.0) for name in stage.behind)
        plan.append(Phase(name=f"from_{number}", rules=(("head", 1.0), *trains, ("backbone", 0.0)), epochs=1))
    return tuple(plan)


def costs_of(
    accelerator: Accelerator, recipe: Recipe, stages: Sequence[Stage], on_cpu: bool, num_workers: int
) -> list[StageCost]:
    """Measure the cost of each boundary, on this machine and one process."""
    measured = {}
    for cache in ("off", "disk"):
        tried = dataclasses.replace(
            recipe, freeze_plan=plan_of(stages), batch_size=BATCH, cache=cache, cache_views=None, cache_precision=None
        )
        prepared = prepare(tried, num_processes=1, micro_batch_size=None, on_cpu=on_cpu)
        measured[cache] = prepared, measure(accelerator, prepared, num_workers)
    (prepared, off), (_, disk) = measured["off"], measured["disk"]
    return [
        StageCost(
            trained=phase.trainable_parameters,
            epoch=fresh.seconds,
            first=stored.features,
            stored=stored.seconds - stored.features,
            bytes_per_image=_kept(accelerator, prepared, phase.lr_scales) / BATCH,
        )
        for phase, fresh, stored in zip(prepared.phases, off.phases, disk.phases, strict=True)
    ]


def _kept(accelerator: Accelerator, prepared: Prepared, lr_scales: object) -> int:
    """Return the bytes of the tensors that a forward pass keeps for the backward pass, without parameters."""
    model = place(copy.deepcopy(prepared.model), accelerator.device)
    assert isinstance(lr_scales, dict)
    freeze(model, lr_scales)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []  # keeps the tensors alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    side = prepared.preprocessing.image_size
    images = torch.zeros(BATCH, 3, side, side, device=accelerator.device).to(memory_format=torch.channels_last)
    model.eval()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), accelerator.autocast():
        model(images)
    return sum(sizes.values())


def gradients_of(
    accelerator: Accelerator, prepared: Prepared, stages: Sequence[Stage], probe: Probe
) -> list[float] | None:
    """Return the norm of the loss's gradient over the norm of the weights, for each stage, with the closed-form head.

    The result is None for a head that is not one linear layer.
    """
    model: TransferModel = copy.deepcopy(prepared.model)
    head = model.head
    if not isinstance(head, nn.Linear) or head.weight.shape != probe.weight.shape:
        return None
    with torch.no_grad():
        head.weight.copy_(probe.weight)
        if head.bias is not None:
            head.bias.copy_(probe.bias)
    model = model.to(accelerator.device).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    dataset = EvaluationImages(prepared.splits.train, evaluation(prepared.preprocessing))
    count = min(4 * BATCH, len(dataset))
    step = len(dataset) / count
    rows = [dataset[int(number * step)] for number in range(count)]
    batch = collate(rows, dataset.transform).to(accelerator.device)
    with accelerator.autocast():
        outputs = model(batch.images)
    torch.autograd.backward(prepared.task.loss(outputs, batch.targets).mean())
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    ratios = []
    for stage in stages:
        parameters = list(backbone.get_submodule(stage.name).parameters())
        gradient = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None)
        weight = sum(float(p.detach().square().sum()) for p in parameters)
        ratios.append((gradient / max(weight, 1e-30)) ** 0.5)
    return ratios
