"""Training from stored features gives the weights of training without: networks of seven families, and views."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from feature_stores import difference, store_of
from launcher import Phase, Recipe, backbones, heads, optim, transforms
from launcher.recipe.part import part
from launcher.recipe.transforms import evaluation
from launcher.training.feature_cache import populate
from launcher.training.feature_cache.cut import Cut, cut
from launcher.training.feature_cache.folding import with_folded_norms
from launcher.training.feature_cache.prefix import FOLDING_TOLERANCE, engine
from launcher.training.frozen_proof import fingerprints
from launcher.training.model import build_model, freeze
from networks import FAMILIES, built
from runs import rows, train

SEVEN = ("resnet18", "densenet121", "convnext_tiny", "vit_b_16", "swin_t", "efficientnet_b0", "inception_v3")
QUICK = ("resnet18", "efficientnet_b0")
STILL = transforms.Augment(preset="none")


@part
class Calibrated(backbones.Torchvision):
    """Random weights whose BatchNorm layers have seen some images: without, a deep network's outputs reach millions."""

    def build(self) -> torch.nn.Module:
        network = super().build()
        see = evaluation(self.preprocessing())
        images = torch.stack([see(picture) for picture in map(tiny.Stripes(20, 0).read, range(20))])
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 0.9
        network.train()
        with torch.no_grad():
            network(images)
        return network


def of_family(name: str) -> Recipe:
    size, trainable, _ = FAMILIES[name]
    rules = (("head", 1.0), *((f"backbone.{module}", 0.1) for module in trainable), ("backbone", 0.0))
    return dataclasses.replace(
        tiny.recipe,
        backbone=Calibrated(name=name, weights=None, image_size=size),
        data=tiny.StripeData(train=20, val=6),
        freeze_plan=(Phase(name="last", rules=rules, epochs=2),),
        optim=optim.SGD(lr=1e-3),
        augment=STILL,
        batch_size=8,
        final_weights="last",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in SEVEN]
)
def test_the_same_weights_with_and_without(name: str, tmp_path: Path) -> None:
    recipe = of_family(name)
    train(dataclasses.replace(recipe, cache="off"), tmp_path / "off")
    train(dataclasses.replace(recipe, cache="disk"), tmp_path / "disk")
    assert not (tmp_path / "off" / "cache.json").exists()
    assert store_of(tmp_path / "disk") == {"last": "disk"}
    assert difference(tmp_path / "off", tmp_path / "disk") < 1e-6
    # Again, from what is there: to the bit.
    train(dataclasses.replace(recipe, cache="disk"), tmp_path / "again")
    assert "there already" in (tmp_path / "again" / "log.txt").read_text()
    assert difference(tmp_path / "disk", tmp_path / "again") == 0


@pytest.mark.slow
def test_memory_and_disk_are_equal_to_the_bit(tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny.recipe, final_weights="last")
    for store in ("memory", "disk"):
        train(dataclasses.replace(recipe, cache=store), tmp_path / store)
        assert store_of(tmp_path / store) == {"linear_probe": store}
    assert difference(tmp_path / "memory", tmp_path / "disk") == 0
    assert rows(tmp_path / "memory", "step") == rows(tmp_path / "disk", "step")


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 3])
def test_views_are_the_pictures_of_their_epochs(views: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many views as epochs nothing repeats: the same weights as from fresh pictures."""
    plan = (dataclasses.replace(tiny.recipe.freeze_plan[0], epochs=3),)
    recipe = dataclasses.replace(tiny.recipe, freeze_plan=plan, final_weights="last")
    train(dataclasses.replace(recipe, cache="off"), tmp_path / "fresh")
    train(dataclasses.replace(recipe, cache="memory", cache_views=views), tmp_path / "views")
    if views == 3:
        assert difference(tmp_path / "fresh", tmp_path / "views") < 1e-6
    else:
        assert difference(tmp_path / "fresh", tmp_path / "views") > 1e-6
    # What is not stored but computed anew is the same.
    monkeypatch.setattr(populate, "decided", lambda *_: ("none", "for the test"))
    train(dataclasses.replace(recipe, cache="memory", cache_views=views), tmp_path / "anew")
    assert difference(tmp_path / "views", tmp_path / "anew") < 1e-6


@pytest.mark.slow
def test_mixup_mixes_what_crosses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny.recipe.freeze_plan[:1]
    augment = transforms.Augment(mixup_alpha=0.4)
    recipe = dataclasses.replace(tiny.recipe, freeze_plan=plan, augment=augment, final_weights="last")
    train(recipe, tmp_path / "stored")
    train(dataclasses.replace(recipe, augment=transforms.Augment()), tmp_path / "plain")
    monkeypatch.setattr(populate, "decided", lambda *_: ("none", "for the test"))
    train(recipe, tmp_path / "anew")
    assert difference(tmp_path / "stored", tmp_path / "anew") < 1e-6
    assert difference(tmp_path / "stored", tmp_path / "plain") > 1e-4


@pytest.mark.slow
def test_in_half_precision_what_is_not_stored_is_rounded_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(tiny.recipe, final_weights="last", cache_precision="bf16", augment=STILL)
    train(dataclasses.replace(recipe, cache="disk"), tmp_path / "stored")
    train(dataclasses.replace(recipe, cache_precision=None), tmp_path / "exact")
    monkeypatch.setattr(populate, "decided", lambda *_: ("none", "for the test"))
    train(dataclasses.replace(recipe, cache="disk"), tmp_path / "anew")
    assert difference(tmp_path / "stored", tmp_path / "anew") < 1e-6
    assert difference(tmp_path / "stored", tmp_path / "exact") > 1e-6


@pytest.mark.slow
def test_the_trained_part_of_a_phase_with_fresh_pictures_has_validation_stored(tmp_path: Path) -> None:
    rules = (("head", 1.0), ("backbone.block2", 0.5), ("backbone", 0.0))
    recipe = dataclasses.replace(tiny.recipe, freeze_plan=(Phase(name="partly", rules=rules, epochs=3),))
    train(recipe, tmp_path / "run")
    train(dataclasses.replace(recipe, cache="off"), tmp_path / "off")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "partly: outputs of what is frozen for 31 images" in log
    assert store_of(tmp_path / "run") == {"partly": "memory"}
    for stored, anew in zip(rows(tmp_path / "run", "epoch"), rows(tmp_path / "off", "epoch"), strict=True):
        assert stored["val"] == pytest.approx(anew["val"], abs=1e-5)


@pytest.mark.slow
def test_a_continued_run_decides_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny.recipe, tmp_path / "whole")
    reads: list[Any] = []
    real = populate.decided  # type: ignore[attr-defined]

    def decided(*words: Any) -> Any:
        reads.append(real(*words))
        return reads[-1]

    monkeypatch.setattr(populate, "decided", decided)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "cache.json").write_text(
        '{"0": {"phase": "linear_probe", "store": "none", "why": "as the test says"}}'
    )
    train(tiny.recipe, tmp_path / "run")
    assert reads == [("none", "as this run began")]
    assert difference(tmp_path / "whole", tmp_path / "run") < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_folding_stays_within_its_tolerance(library: str) -> None:
    if library == "torchvision":
        model, size = built("resnet18", 32, ("layer4",)), 32
    else:  # norms that hold their activations, convolutions that pad as TensorFlow does
        model = build_model(backbones.Timm(name="tf_efficientnet_lite0", weights=None), heads.Linear(), 3, 0)
        trains = ("head", "backbone.conv_head", "backbone.bn2")
        freeze(model, {name: float(name.startswith(trains)) for name, _ in model.named_parameters()})
        size = 64
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.1)
    found = cut(model, "keep", size)
    assert isinstance(found, Cut)
    before = fingerprints(model)
    plain, is_copy = engine(found, autocast=contextlib.nullcontext, precision="no", fold=False, image_size=size)
    assert not is_copy
    folded, is_copy = engine(found, autocast=contextlib.nullcontext, precision="no", fold=True, image_size=size)
    assert is_copy
    assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.module.modules()) == 0
    images = torch.randn(8, 3, size, size)
    (exact,), (near,) = plain(images), folded(images)
    assert 0 < (exact - near).abs().max() <= FOLDING_TOLERANCE * exact.abs().max()
    assert fingerprints(model) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_b_16"])
def test_weights_that_are_cast_once_change_no_bit(name: str) -> None:
    """What autocast does in each forward."""
    size, trains, _ = FAMILIES[name]
    model = built(name, size, trains)
    found = cut(model, "keep", size)
    assert isinstance(found, Cut)
    bf16 = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    once, is_copy = engine(found, autocast=bf16, precision="bf16", fold=False, image_size=size)
    assert is_copy
    images = torch.randn(2, 3, size, size)
    with torch.no_grad(), bf16():
        each_time = found.prefix(images)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(once(images), each_time, strict=True))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_norm_between_other_things_is_not_folded() -> None:
    class Norms(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 1)
            self.norm, self.after_shared = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            maps = self.first(images)
            maps = maps + self.norm(maps)  # the convolution's own output is used, too
            return self.after_shared(self.shared(self.shared(maps)))  # one convolution, called twice

    assert with_folded_norms(torch.fx.symbolic_trace(Norms().eval())) is None
