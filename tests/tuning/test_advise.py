"""`advise`: probes at each depth agree with scikit-learn's, costs are of real steps, proposals are plans that run."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from sklearn.linear_model import RidgeClassifierCV

import tiny
from launcher import Phase, data, tasks
from launcher.cli import main
from launcher.errors import UserError
from launcher.recipe.transforms import evaluation
from launcher.training.launch import Launch, World
from launcher.training.model import build_model
from launcher.tuning.advise.advise import advise, recipes_for
from launcher.tuning.advise.probes import Probe, some_of
from launcher.tuning.advise.proposal import propose
from launcher.tuning.advise.stages import Stage, stages_of
from recipes import digits

LAUNCH = Launch(num_workers=0, world=World(use_cpu=True, num_cpus=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "last", "count"),
    [
        ("resnet18", "layer1", "layer4", 4),
        ("efficientnet_b0", "features.3", "features.8", 6),
        ("convnext_tiny", "features.1", "features.7", 6),
        ("vit_b_16", "conv_proj", "encoder.layers.encoder_layer_11", 8),
        ("densenet121", "features.denseblock1", "features.denseblock4", 6),
    ],
)
def test_stages(name: str, first: str, last: str, count: int) -> None:
    network = torchvision.models.get_model(name, weights=None)
    for classifier in ("fc", "classifier", "heads"):
        if hasattr(network, classifier):
            setattr(network, classifier, torch.nn.Identity())
    stages = stages_of(network)
    assert (stages[0].name, stages[-1].name) == (first, last)
    assert len(stages) == count
    assert [stage.parameters for stage in stages] == sorted((stage.parameters for stage in stages), reverse=True)
    for stage in stages:
        behind = sum(p.numel() for part in stage.behind for p in network.get_submodule(part).parameters())
        assert behind == stage.parameters


@pytest.fixture(scope="module")
def three() -> list[Any]:
    """The digits with real weights and with two networks of random ones."""
    recipes = recipes_for(digits.recipe, ["mobilenet_v3_small:none", "recipe", "resnet18:none"])
    return advise(recipes, 400, LAUNCH, lambda _: None, costs=False)


@pytest.mark.long
def test_real_weights_come_first(three: list[Any]) -> None:
    assert three[0].name == "tf_efficientnet_lite0"
    assert all("random weights" in advice.name for advice in three[1:])
    values = [advice.best[1].value for advice in three]
    assert values == sorted(values, reverse=True)
    assert {advice.image_size for advice in three} == {64}


@pytest.mark.long
def test_a_probe_agrees_with_scikit_learn(three: list[Any]) -> None:
    """With its ridge classifier on the backbone's own output of the same images, within the interval."""
    recipe = digits.recipe
    splits = recipe.data.build("class", recipe.seed)
    transform = evaluation(recipe.backbone.preprocessing())
    network = build_model(recipe.backbone, recipe.head, 10, recipe.seed).backbone.eval()
    features = []
    train = some_of(splits.train, 400, recipe.seed)
    for split in (train, splits.val):
        images = torch.stack([transform(split.images.read(index).convert("RGB")) for index in range(len(split))])
        with torch.no_grad():
            features.append(torch.cat([network(part) for part in images.split(50)]).numpy())
    theirs = RidgeClassifierCV(alphas=np.logspace(-3, 6, 19)).fit(features[0], train.targets)
    accuracy = theirs.score(features[1], splits.val.targets)
    assert three[0].probes[-1].low <= accuracy <= three[0].probes[-1].high


@pytest.mark.slow
@pytest.mark.parametrize("task", [tasks.Classification(), tasks.MultiLabel(), tasks.Regression()])
def test_costs_and_a_plan_that_runs(task: Any, tmp_path: Path, capsys: Any) -> None:
    recipe = dataclasses.replace(tiny.recipe, task=task)
    (found,) = advise([recipe], 1000, LAUNCH, lambda _: None)
    assert [stage.name for stage in found.stages] == ["block1", "block2.0", ""]
    trained = [cost.trained for cost in found.costs]
    assert trained == sorted(trained, reverse=True)
    assert trained[-1] == 16 * found.probes[-1].weight.shape[0] + found.probes[-1].weight.shape[0]
    assert all(cost.epoch > 0 and cost.stored > 0 and cost.first > 0 for cost in found.costs)
    kept = [cost.bytes_per_image for cost in found.costs]
    assert kept == sorted(kept, reverse=True)
    assert (found.trained_on, found.measured_on) == (90, 31)
    assert found.probes[0].low <= found.probes[0].value <= found.probes[0].high
    plan = _plan_of(found.proposal.plan)
    assert plan[0].rules[0] == ("head", 1.0)


def _plan_of(text: str) -> tuple[Phase, ...]:
    """The phases that the proposal's Python would make, read by the numbers in it."""
    found = []
    for name, rules, epochs in re.findall(r'Phase\(name="(\w+)", rules=\((.*?)\), epochs=(\d+)\)', text):
        pairs = tuple((pattern, float(rate)) for pattern, rate in re.findall(r'\("([\w.]+)", ([\d.]+)\)', rules + ")"))
        found.append(Phase(name=name, rules=pairs, epochs=int(epochs)))
    assert found
    return tuple(found)


def _probe(value: float, spread: float = 0.01) -> Probe:
    return Probe(8, value, value - spread, value + spread, torch.zeros(1), torch.zeros(1))


def test_proposals() -> None:
    stages = [Stage("layer1", ("layer2", "layer3"), 20), Stage("layer2", ("layer3",), 10), Stage("", (), 0)]
    costs: list[Any] = [SimpleNamespace(epoch=2.0, stored=0.1)] * 3
    few = propose(stages, [_probe(0.5), _probe(0.6), _probe(0.9)], costs, 5, "5 images", "max", "accuracy")
    assert "finetune" not in few.plan
    some = propose(stages, [_probe(0.5), _probe(0.89), _probe(0.9)], costs, 50, "50 images", "max", "accuracy")
    assert '("backbone.layer3", 0.03), ("backbone", 0)' in some.plan
    many = propose(stages, [_probe(0.5), _probe(0.6), _probe(0.9)], costs, 5000, "5000 images", "max", "accuracy")
    assert '("head", 1), ("backbone", 0.3)' in many.plan
    early = propose(stages, [_probe(0.95), _probe(0.6), _probe(0.8)], costs, 300, "300 images", "max", "accuracy")
    assert '("backbone.layer2", 0.3), ("backbone.layer3", 0.3), ("backbone", 0)' in early.plan
    assert "0.9500 at layer1 and 0.8000 at the end" in early.why[1]
    error = propose(stages, [_probe(9.0), _probe(5.0), _probe(2.0)], costs, 5000, "5000 images", "min", "mae")
    assert '("backbone", 0.3)' in error.plan


def test_the_command(capsys: Any) -> None:
    words = ["tests/support/tiny.py", "--images", "60", "--workers", "0", "--no-costs"]
    assert main(["advise", *words]) == 0
    out = capsys.readouterr().out
    assert "TinyBackbone" in out
    assert "freeze_plan=(" in out
    assert "31 validation images: the intervals are wide" in out


def test_mistakes(capsys: Any) -> None:
    with pytest.raises(UserError) as caught:
        recipes_for(tiny.recipe, ["resnet5O:none", "timm:", "recipe"])
    assert len(caught.value.problems) == 2
    assert "resnet5O" in caught.value.problems[0]
    assert main(["advise", "tests/support/tiny.py", "optim.lrr=1"]) == 2
    assert "did you mean 'lr'" in capsys.readouterr().err


def test_broken_images_are_reported_before_anything_is_computed(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "val/a/1.png", "val/b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        tiny.picture(tiny.Stripes(9, 0), len(name)).save(tmp_path / name)
    (tmp_path / "train/b/2.png").write_bytes(b"nothing")
    recipe = dataclasses.replace(tiny.recipe, data=data.ImageFolder(root=str(tmp_path)))
    with pytest.raises(UserError, match=r"b/2\.png"):
        advise([recipe, recipe], 1000, LAUNCH, lambda _: None)
