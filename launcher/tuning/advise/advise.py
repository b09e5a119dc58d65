"""Advice on backbones: probes at their boundaries, the cost of training from there on, and a proposal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from torch import nn

from launcher.backbones import Timm, Torchvision
from launcher.data.target_precision import build_splits
from launcher.errors import Problems, UserError
from launcher.recipe.abilities import HasImageSize, HasNetworkName, HasPretrainedWeights
from launcher.recipe.protocols import Splits, TargetKind
from launcher.recipe.recipe import Recipe
from launcher.text import plural
from launcher.training.accelerator import start_accelerator
from launcher.training.checked_images import checked_together
from launcher.training.launch import Launch
from launcher.training.preflight import Prepared, prepare
from launcher.training.setup import workers_of
from launcher.tuning.advise.costs import StageCost, costs_of, gradients_of
from launcher.tuning.advise.probes import FINAL, Probe, features_at, probe, some_of
from launcher.tuning.advise.proposal import Proposal, propose
from launcher.tuning.advise.stages import Stage, stages_of


@dataclasses.dataclass(frozen=True)
class Advice:
    """Advice on one backbone."""

    name: str
    parameters: int
    image_size: int
    stages: list[Stage]
    """Stages, the last of which stands for the backbone's own output."""
    probes: list[Probe]
    costs: list[StageCost]
    gradients: list[float] | None
    """Relative gradient of each stage but the last."""
    proposal: Proposal
    metric: str
    mode: str
    trained_on: int
    measured_on: int
    findings: tuple[str, ...]

    @property
    def best(self) -> tuple[Stage, Probe]:
        """Stage with the best probe, and that probe; of equals, the last."""
        sign = 1 if self.mode == "max" else -1
        number = max(range(len(self.probes)), key=lambda index: (sign * self.probes[index].value, index))
        return self.stages[number], self.probes[number]


def recipes_for(recipe: Recipe, backbones: Sequence[str]) -> list[Recipe]:
    """Return the recipe with each backbone in turn, at the image size that the recipe asks for, if it does.

    Backbones are named "resnet50", "timm:vit_small_patch16_224", "resnet18:none" (random weights),
    "resnet50:IMAGENET1K_V1" or "recipe" (the recipe's own).

    Raises:
        UserError: A backbone cannot be used as named.
    """
    if not backbones:
        return [recipe]
    problems, recipes = Problems(), []
    for word in backbones:
        with problems.collected():
            side = recipe.backbone.image_size if isinstance(recipe.backbone, HasImageSize) else None
            recipes.append(recipe if word == "recipe" else dataclasses.replace(recipe, backbone=_backbone(word, side)))
    problems.raise_if_any()
    return recipes


def _backbone(word: str, image_size: int | None) -> Timm | Torchvision:
    network = word.removeprefix("timm:")
    name, _, weights = network.partition(":")
    if not name or "timm:" in network:
        raise UserError(f"--backbones {word!r}: write NAME, NAME:WEIGHTS or timm:NAME")
    library: type[Timm | Torchvision] = Timm if word.startswith("timm:") else Torchvision
    chosen = None if weights.lower() == "none" else weights or "DEFAULT"
    backbone = library(name=name, weights=chosen, image_size=image_size)
    backbone.check()
    return backbone


def advise(
    recipes: Sequence[Recipe], most_images: int, launch: Launch, report: Callable[[str], None], *, costs: bool = True
) -> list[Advice]:
    """Return advice on the backbone of each recipe, the best first.

    Backbones are ordered by the best of their boundaries, not by the last: the last ones may be specialised for the
    images that the backbone was trained on, and are what fine-tuning changes most.
    """
    first = recipes[0]
    splits = build_splits(first)
    splits = checked_together(_accelerator(first, launch), report)(first, splits)
    looked_at = [dataclasses.replace(recipe, data=Looked(splits)) for recipe in recipes]
    all_advice = [_of_one(recipe, most_images, launch, report, costs=costs) for recipe in looked_at]
    sign = -1 if all_advice[0].mode == "max" else 1
    return sorted(all_advice, key=lambda advice: sign * advice.best[1].value)


@dataclasses.dataclass(frozen=True)
class Looked:
    """Data part whose images are known to be readable: they are checked once, for all backbones."""

    splits: Splits

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        return self.splits


def _accelerator(recipe: Recipe, launch: Launch) -> Accelerator:
    # There is no run dir in which the choice of "auto" would be recorded.
    precision = "no" if recipe.mixed_precision == "auto" else recipe.mixed_precision
    return start_accelerator(recipe, launch, Path(), precision)


def _of_one(recipe: Recipe, most_images: int, launch: Launch, report: Callable[[str], None], *, costs: bool) -> Advice:
    accelerator = _accelerator(recipe, launch)
    on_cpu = accelerator.device.type == "cpu"
    prepared = prepare(recipe, num_processes=1, micro_batch_size=None, on_cpu=on_cpu)
    backbone = prepared.model.backbone
    assert isinstance(backbone, nn.Module)
    part = recipe.backbone
    name = str(part.name) if isinstance(part, HasNetworkName) else type(part).__name__
    if isinstance(part, HasPretrainedWeights) and part.weights is None:
        name += " (random weights)"
    stages = stages_of(backbone)
    if not stages or stages[-1].behind:
        stages.append(Stage(FINAL, (), 0))
    else:  # nothing behind the last stage trains: it is the backbone's own output, pooled
        stages[-1] = Stage(FINAL, (), 0)
    train, val = (some_of(split, most_images, recipe.seed) for split in (prepared.splits.train, prepared.splits.val))
    report(
        f"{name}: {len(train):,} training and {plural(len(val), 'validation image')} at "
        f"{plural(len(stages), 'boundary', 'boundaries')}"
    )
    names = [stage.name for stage in stages if stage.name != FINAL]
    features = [features_at(accelerator, backbone, names, split, prepared.preprocessing) for split in (train, val)]
    kind = recipe.task.target_kind
    probes = [
        probe((features[0][stage.name], train), (features[1][stage.name], val), prepared.task, kind, recipe.seed)
        for stage in stages
    ]
    gradients = gradients_of(accelerator, prepared, [s for s in stages if s.name != FINAL], probes[-1])
    if costs:
        report(f"{name}: a few steps from each boundary, timed")
        measured = costs_of(accelerator, recipe, stages, on_cpu, workers_of(launch))
    else:
        measured = [StageCost(0, float("nan"), float("nan"), float("nan"), float("nan"))] * len(stages)
    task = prepared.task
    return Advice(
        name=name,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        image_size=prepared.preprocessing.image_size,
        stages=stages,
        probes=probes,
        costs=measured,
        gradients=gradients,
        proposal=propose(stages, probes, measured, *_of_each(prepared), task.monitor_mode, task.monitor),
        metric=task.monitor,
        mode=task.monitor_mode,
        trained_on=len(train),
        measured_on=len(val),
        findings=tuple(_findings(prepared)),
    )


def _of_each(prepared: Prepared) -> tuple[float, str]:
    """Return from how many images each output is learned, and a description of that number."""
    targets = prepared.splits.train.targets
    kind = prepared.recipe.task.target_kind
    if kind == "class":
        count = float(np.median(np.bincount(targets, minlength=len(prepared.splits.names))))
        return count, f"{plural(round(count), 'image')} of each class (median)"
    if kind == "labels":
        count = float(np.median(targets.sum(axis=0)))
        return count, f"{plural(round(count), 'image')} with each label (median)"
    return len(targets) / 10, f"{plural(len(targets), 'image')}, of which a tenth counts as those of a class would"


def _findings(prepared: Prepared) -> list[str]:
    """Return findings about the data that change the plan of training."""
    findings, splits, train = [], prepared.splits, prepared.splits.train
    if prepared.recipe.task.target_kind == "class":
        counts = np.bincount(train.targets, minlength=len(splits.names))
        if counts.min() * 3 < counts.max():
            least, most = splits.names[int(counts.argmin())], splits.names[int(counts.argmax())]
            findings.append(
                f"classes are uneven: {most} has {plural(int(counts.max()), 'image')}, {least} {counts.min():,}; "
                "consider task.class_weights=balanced and monitor='macro_f1'"
            )
        if (few := int((counts < 10).sum())) > 0:
            findings.append(
                f"{few} of {plural(len(counts), 'class', 'classes', spec='')} {'has' if few == 1 else 'have'} "
                "fewer than 10 training images"
            )
    if len(splits.val) < 200:
        findings.append(
            f"{plural(len(splits.val), 'validation image')}: the intervals are wide, and small differences mean nothing"
        )
    sides = [min(train.images.read(index).size) for index in range(0, len(train), max(1, len(train) // 50))]
    side, size = int(np.median(sides)), prepared.preprocessing.image_size
    if side < size / 2:
        findings.append(
            f"the images have {side} pixels, and the network sees {size}: backbone.image_size={max(32, 2 * side)} "
            "costs less, and may be as good"
        )
    return findings
