"""Notes of `plan` and `train` on settings that are legal but unusual.

Some of these settings make the result depend on how the batch is split.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import nn

from launcher.data.names import notes_of_names
from launcher.recipe.abilities import HasPretrainedWeights, WeighsClasses
from launcher.recipe.protocols import Splits
from launcher.recipe.recipe import Recipe
from launcher.text import plural
from launcher.training.launch import default_workers, usable_cpus
from launcher.training.model import freeze, set_train_mode
from launcher.training.preflight import Findings, Prepared, ResolvedPhase
from launcher.training.worker_limits import shared_memory_problem

LARGE_IMBALANCE = 10
"""Ratio of the images in the largest class to those in the smallest above which classes get a note."""


def notes(findings: Findings | Prepared) -> Iterable[str]:
    """Yield one line for each fact that a person should know before training."""
    if findings.splits:
        yield from findings.splits.notes
        if findings.recipe.task.target_kind != "values":
            yield from notes_of_names(findings.splits.names)
    yield from _of_the_split(findings)
    yield from _of_random_weights(findings)
    if findings.splits:
        yield from _of_the_data(findings.recipe, findings.splits)
    # `plan` only notes a lack of shared memory; `train` refuses to start because of it.
    if isinstance(findings, Findings) and not findings.problems.found and findings.batching:
        prepared, processes = findings.prepared(), findings.batching.num_processes
        workers = default_workers(usable_cpus() // processes)
        if problem := shared_memory_problem(prepared, workers, processes):
            yield f"on this machine: {problem}"


def _of_the_split(findings: Findings | Prepared) -> Iterable[str]:
    """Yield notes on settings that make the weights depend on how the batch is split."""
    updating = [p.phase.name for p in findings.phases if p.phase.norm_statistics == "update" and p.norm_layers]
    if updating:
        joins = findings.recipe.sync_batchnorm
        joined = " (sync_batchnorm joins the processes, not the accumulation)" if joins else ""
        yield (
            f"{_named(updating, findings)}: norm_statistics='update': BatchNorm sees one micro-batch of one process, "
            f"so the weights depend on how the batch is split{joined}"
        )
    drawing = random_layers(findings)
    if drawing:
        kinds = ", ".join(sorted({kind for _, kind in drawing}))
        yield (
            f"{_named((phase for phase, _ in drawing), findings)}: {kinds}: drawn for each process and "
            "micro-batch, so the weights depend on how the batch is split"
        )


def _of_random_weights(findings: Findings | Prepared) -> Iterable[str]:
    backbone = findings.recipe.backbone
    if not isinstance(backbone, HasPretrainedWeights) or backbone.weights is not None:
        return
    yield "backbone.weights=None: the network starts from random weights"
    still = [p.phase.name for p in findings.phases if not _trains_backbone(p)]
    if still and not any(map(_trains_backbone, findings.phases)):
        yield f"{_named(still, findings)}: random weights stay as they are, so the head has little to learn from"
    kept = [p.phase.name for p in findings.phases if p.phase.norm_statistics == "keep" and p.norm_layers]
    if kept:
        yield f"{_named(kept, findings)}: BatchNorm keeps statistics never learned; norm_statistics='update' learns"


def _of_the_data(recipe: Recipe, splits: Splits) -> Iterable[str]:
    if recipe.batch_size > len(splits.train):
        images = plural(len(splits.train), "training image", spec="")
        yield f"batch_size={recipe.batch_size} is more than all {images}: one step per epoch"
    if splits.train.targets.ndim == 1:
        counts = np.bincount(splits.train.targets, minlength=len(splits.names))
        unweighted = isinstance(recipe.task, WeighsClasses) and recipe.task.class_weights is None
        if unweighted and counts.max() > LARGE_IMBALANCE * counts.min():
            yield (
                f"classes have {counts.min():,} to {plural(int(counts.max()), 'training image')}; "
                "task.class_weights=balanced would give each class the same weight in the loss"
            )


def _trains_backbone(resolved: ResolvedPhase) -> bool:
    return any(scale and name.startswith("backbone.") for name, scale in resolved.lr_scales.items())


def random_layers(findings: Findings | Prepared) -> list[tuple[str, str]]:
    """Return (phase, kind) of the layers that draw random numbers in training, such as dropout and stochastic depth."""
    if findings.model is None:
        return []
    was = [(module, module.training) for module in findings.model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in findings.model.parameters()]
    drawing = {}
    for resolved in findings.phases:
        freeze(findings.model, resolved.lr_scales)
        set_train_mode(findings.model, resolved.phase.norm_statistics)
        for module in findings.model.modules():
            if module.training and _draws(module):
                drawing[resolved.phase.name, type(module).__name__] = True
    for module, training in was:
        module.training = training
    for parameter, requires_grad in trained:
        parameter.requires_grad_(requires_grad)
    return list(drawing)


def _draws(module: nn.Module) -> bool:
    """Return whether a module drops something in training.

    It does so by its own kind (Dropout, StochasticDepth, DropPath) or inside its forward pass (`dropout` of attention
    layers, `drop_rate` of timm).
    """
    kind = type(module).__name__.lower()
    of_kind = "drop" in kind or "stochasticdepth" in kind
    return any(
        isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        for name, value in vars(module).items()
        if "drop" in name.lower() or (name == "p" and of_kind)
    )


def _named(phases: Iterable[str], findings: Findings | Prepared) -> str:
    names = list(dict.fromkeys(phases))
    return "all phases" if len(names) == len(findings.phases) > 1 else ", ".join(names)
