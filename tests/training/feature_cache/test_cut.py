"""Every torchvision family is cut where it is frozen: the same outputs to the bit, the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from launcher import backbones, heads
from launcher.recipe.phases import matches
from launcher.training.feature_cache.cut import Cut, Uncut, cut
from launcher.training.model import TransferModel, build_model, freeze, set_train_mode
from networks import FAMILIES, built


def gradients(model: TransferModel, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    outputs.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_partly_frozen_network_of_each_family(name: str) -> None:
    size, trainable, shapes = FAMILIES[name]
    model = built(name, size, trainable)
    before = set(model.state_dict()), set(vars(model))
    found = cut(model, "keep", size)
    assert isinstance(found, Cut), found
    assert (set(model.state_dict()), set(vars(model))) == before
    assert [tensor.shape for tensor in found.boundary] == shapes
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        model.eval()
        assert torch.equal(found.tail(*found.prefix(images)), model(images))
        boundary = found.prefix(images)
    set_train_mode(model, "keep")
    torch.manual_seed(1)  # the tails of some draw dropout
    whole = gradients(model, model(images))
    torch.manual_seed(1)
    parts = gradients(model, found.tail(*boundary))
    assert whole.keys() == parts.keys()
    assert whole.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for parameter, gradient in whole.items():
        # Convolutions of a smaller graph may sum in another order.
        scale = gradient.abs().max()
        assert (parts[parameter] - gradient).abs().max() <= 1e-5 * scale, parameter


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "densenet121", "swin_t"])
def test_with_all_of_the_backbone_frozen_its_features_cross(name: str) -> None:
    size = FAMILIES[name][0]
    model = built(name, size, (), dropout=0.5)
    found = cut(model, "keep", size)
    assert isinstance(found, Cut)
    assert [tensor.shape for tensor in found.boundary] == [(model.backbone.num_features,)]  # type: ignore[comparison-overlap]


@pytest.mark.slow
def test_statistics_that_are_updated_do_not_cross() -> None:
    model = built("resnet18", 32, ("layer4",))
    found = cut(model, "update", 32)
    assert isinstance(found, Cut)
    images = torch.randn(4, 3, 32, 32)
    boundary = found.prefix(images)
    set_train_mode(model, "update")
    before = model.backbone.layer4[0].bn1.running_mean.clone()
    found.tail(*boundary)
    assert not torch.equal(before, model.backbone.layer4[0].bn1.running_mean)
    assert all(not module.training for module in model.backbone.layer3.modules())


def test_nothing_frozen_is_no_cut() -> None:
    model = built("resnet18", 32, ("",))
    freeze(model, {name: 1.0 for name, _ in model.named_parameters()})
    assert cut(model, "keep", 32) == Uncut(None)


@pytest.mark.slow
def test_a_first_layer_that_trains_is_no_cut() -> None:
    model = built("resnet18", 32, ("conv1",))
    assert cut(model, "keep", 32) == Uncut(None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trainable", "shapes"),
    [
        ("tf_efficientnet_lite0", ("blocks.6", "conv_head", "bn2"), [(192, 7, 7)]),
        ("vit_tiny_patch16_224", ("blocks.11", "norm"), [(197, 192)]),
        # Its stochastic depth is an operation in training only, so its two graphs part.
        ("swin_tiny_patch4_window7_224", ("layers.3",), [(7, 7, 1536)]),
        ("coatnet_nano_rw_224", ("stages.3",), [(256, 7, 7), (14, 14, 256)]),
    ],
)
def test_networks_of_timm(name: str, trainable: tuple[str, ...], shapes: list[tuple[int, ...]]) -> None:
    backbone = backbones.Timm(name=name, weights=None)
    model = build_model(backbone, heads.Linear(), 5, 0)
    patterns = ("head", *(f"backbone.{module}" for module in trainable))
    freeze(model, {n: float(any(matches(p, n) for p in patterns)) for n, _ in model.named_parameters()})
    found = cut(model, "keep", 224)
    assert isinstance(found, Cut), found
    assert [tensor.shape for tensor in found.boundary] == shapes
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        boundary = found.prefix(images)
    set_train_mode(model, "keep")
    torch.manual_seed(1)
    whole = gradients(model, model(images))
    torch.manual_seed(1)
    parts = gradients(model, found.tail(*boundary))
    assert whole.keys() == parts.keys()
    for parameter, gradient in whole.items():
        assert (parts[parameter] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), parameter


class Wilful(nn.Module):
    """Looks at its values, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.num_features = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.first(images)
        if maps.mean() > 100:
            maps = -maps
        return self.second(maps).mean((2, 3))


def test_a_network_that_cannot_be_traced_is_cut_at_its_features_or_says_why() -> None:
    model = TransferModel(Wilful(), nn.Linear(4, 2))
    freeze(model, {name: float(name.startswith("head")) for name, _ in model.named_parameters()})
    found = cut(model, "keep", 16)
    assert isinstance(found, Cut)
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(found.tail(*found.prefix(images)), model(images))
    freeze(model, {name: float("first" not in name) for name, _ in model.named_parameters()})
    uncut = cut(model, "keep", 16)
    assert isinstance(uncut, Uncut)
    assert uncut.reason is not None
    assert "Wilful cannot be cut where it is frozen" in uncut.reason


@pytest.mark.slow
def test_hooks_are_called_as_without() -> None:
    """A graph calls those of whole layers; a module that it would take apart stays in one piece for its hooks."""
    model = built("resnet18", 32, ("layer4",))
    seen: list[str] = []
    model.backbone.layer2[0].conv1.register_forward_hook(lambda *_: seen.append("layer"))
    found = cut(model, "keep", 32)
    assert isinstance(found, Cut)
    seen.clear()
    found.prefix(torch.zeros(1, 3, 32, 32))
    assert seen == ["layer"]
    model.backbone.layer2.register_forward_hook(lambda *_: seen.append("block"))
    uncut = cut(model, "keep", 32)
    assert isinstance(uncut, Uncut)
    assert uncut.reason == "ResNet cannot be cut where it is frozen: backbone.layer2 has hooks"
    freeze(model, {name: float(name.startswith("head")) for name, _ in model.named_parameters()})
    found = cut(model, "keep", 32)
    assert isinstance(found, Cut)
    seen.clear()
    found.prefix(torch.zeros(1, 3, 32, 32))
    assert seen == ["layer", "block"]


def test_what_draws_at_random_is_not_in_the_prefix() -> None:
    """A dropout between two frozen layers that belongs to a module which trains draws anew in each step."""

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.drop = nn.Conv2d(3, 4, 3), nn.Dropout(0.5)
            self.second, self.last = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
            self.num_features = 4

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.last(self.second(self.drop(self.first(images)))).mean((2, 3))

    model = TransferModel(Between(), nn.Linear(4, 2))
    freeze(model, {name: float("last" in name or "head" in name) for name, _ in model.named_parameters()})
    found = cut(model, "keep", 16)
    assert isinstance(found, Cut)
    assert [tensor.name for tensor in found.boundary] == ["backbone_first"]
