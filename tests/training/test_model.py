import pytest
import torch
import torchvision
from accelerate import Accelerator
from torch import nn

from launcher import backbones, heads
from launcher.errors import UserError
from launcher.recipe.phases import NormStatistics
from launcher.training.frozen_proof import fingerprint, fingerprints, prove
from launcher.training.model import (
    TransferModel,
    build_model,
    changing_tensors,
    cpu_state,
    freeze,
    load_state,
    set_train_mode,
)


def convnext_like() -> TransferModel:
    """Stochastic depth and LayerNorm in two blocks, BatchNorm in front, dropout in the head."""
    backbone = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), torchvision.ops.StochasticDepth(0.5, "row")),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2))
    return TransferModel(backbone, head)


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


def scales(model: nn.Module, trains: tuple[str, ...]) -> dict[str, float]:
    return {name: float(name.startswith(trains)) for name, _ in model.named_parameters()}


def test_only_what_trains_is_in_training_mode() -> None:
    model = convnext_like()
    freeze(model, scales(model, ("head", "backbone.1")))
    model.eval()
    set_train_mode(model, "update")
    mode = modes(model)
    assert not mode["backbone.0"]
    assert not mode["backbone.0.1"]
    assert mode["backbone.1.1"]
    assert mode["backbone.1.2"]  # stochastic depth of a block that trains
    assert mode["head.0"]
    set_train_mode(model, "keep")
    assert not modes(model)["backbone.1.1"]
    assert modes(model)["backbone.1.2"]


def test_a_frozen_backbone_draws_nothing_and_learns_nothing() -> None:
    model = convnext_like()
    freeze(model, scales(model, ("head",)))
    set_train_mode(model, "update")
    before = fingerprints(model, [name for name in model.state_dict() if name.startswith("backbone")])
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(model.backbone(images), model.backbone(images))
    model(images).sum().backward()
    prove(Accelerator(cpu=True), model, before, "probe", {})
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"head.1.weight", "head.1.bias"}


@pytest.mark.parametrize(("statistics", "expected"), [("keep", 0), ("update", 3)])
def test_what_a_phase_may_change(statistics: NormStatistics, expected: int) -> None:
    model = convnext_like()
    freeze(model, scales(model, ("head", "backbone.1")))
    changing = changing_tensors(model, statistics)
    buffers = {name for name, _ in model.named_buffers()} & changing
    assert len(buffers) == expected
    assert {"backbone.1.1.weight", "head.1.bias"} <= changing
    assert "backbone.0.1.running_mean" not in changing


def test_a_nudged_frozen_tensor_is_named() -> None:
    model = convnext_like()
    freeze(model, scales(model, ("head",)))
    before = fingerprints(model, [name for name in model.state_dict() if name.startswith("backbone")])
    with torch.no_grad():
        model.backbone[0][0].weight[0, 0, 0, 0] += 1e-7
    with pytest.raises(UserError, match=r"phase probe: 1 frozen tensor changed on process 0: backbone.0.0.weight"):
        prove(Accelerator(cpu=True), model, before, "probe", {})


def test_fingerprints_see_every_bit() -> None:
    zero = torch.zeros(3)
    assert fingerprint(zero) != fingerprint(-zero)
    assert fingerprint(torch.tensor(3)) == fingerprint(torch.tensor(3))
    image = torch.randn(2, 3, 4, 4)
    assert fingerprint(image) == fingerprint(image.to(memory_format=torch.channels_last))


@pytest.mark.slow
def test_the_same_seed_builds_the_same_head_whatever_was_drawn_before() -> None:
    part = backbones.Torchvision(name="resnet18", weights=None)
    models = []
    for draws in (0, 5):
        torch.randn(draws)
        models.append(build_model(part, heads.MLP(hidden=8), 3, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in models), strict=True))
    other = build_model(part, heads.MLP(hidden=8), 3, seed=2)
    assert not torch.equal(other.head[0].weight, models[0].head[0].weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "convnext_tiny"])
def test_real_frozen_networks_stand_still(name: str) -> None:
    """BatchNorm, and stochastic depth with it and without: two steps, an evaluation, two steps."""
    model = build_model(backbones.Torchvision(name=name, weights=None), heads.Linear(), 3, seed=0)
    freeze(model, scales(model, ("head",)))
    before = fingerprints(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    images = torch.randn(4, 3, 64, 64)
    for _ in range(2):
        for _ in range(2):
            set_train_mode(model, "update")
            model(images).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        model(images)
    after = fingerprints(model)
    moved = {key for key in before if before[key] != after[key]}
    assert "head.bias" in moved  # a random EfficientNet's features are all but zero, and so is its head's gradient
    assert moved <= {"head.weight", "head.bias"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnasnet0_5", "resnet18"])
def test_a_copy_of_the_state_goes_back_into_the_network(name: str) -> None:
    """Also into one that asks for the version of its layout, which a file does not hold."""
    one, other = (
        build_model(backbones.Torchvision(name=name, weights=None), heads.Linear(), 3, seed) for seed in (0, 1)
    )
    load_state(one, cpu_state(other))
    assert fingerprints(one) == fingerprints(other)
