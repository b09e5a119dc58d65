"""BatchNorm that keeps its statistics is computed by the convolution before it: the same gradients, on what trains."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tiny
from launcher import backbones
from launcher.training import ddp
from launcher.training.folding import fold_whole
from launcher.training.model import TransferModel, set_train_mode
from networks import built
from runs import train

pytestmark = pytest.mark.slow

# Name, image size, how many norms there are, and how many of them follow a convolution and can be folded.
NETWORKS = {
    "densenet121": (32, 121, 59),
    "efficientnet_b0": (32, 49, 49),
    "googlenet": (32, 57, 57),
    "inception_v3": (75, 94, 94),
    "mnasnet0_5": (32, 52, 52),
    "mobilenet_v3_small": (32, 34, 34),
    "regnet_y_400mf": (32, 53, 53),
    "resnet18": (32, 20, 20),
    "shufflenet_v2_x0_5": (32, 56, 56),
    "vgg11_bn": (32, 8, 8),
}
MANY = 10**9


def seasoned(model: nn.Module) -> None:
    """Statistics, scales and shifts as a trained network has them, none of them 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(layer.bias, generator=generator)


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def folded(model: nn.Module) -> int:
    return sum(type(layer).__name__.startswith("Folded") for layer in norms(model))


def gradients(model: TransferModel, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # dropout and stochastic depth
        outputs = model(images)
    outputs.square().sum().backward()
    return outputs.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_the_network(name: str) -> None:
    size, have, can = NETWORKS[name]
    model = built(name, size, ("*",)).double()
    assert len(norms(model)) == have
    with torch.no_grad():
        seasoned(model)
    set_train_mode(model, "keep")
    other, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    assert fold_whole(other, MANY, size) == can == folded(other)
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    outputs, wanted = gradients(model, images)
    ours, found = gradients(other, images)
    torch.testing.assert_close(ours, outputs, rtol=1e-9, atol=1e-9)
    assert list(found) == list(wanted)
    for name_ in wanted:
        scale = float(wanted[name_].abs().max())
        torch.testing.assert_close(found[name_], wanted[name_], rtol=1e-8, atol=1e-8 * scale, msg=name_)
    # Without gradients it is the network as it was, to the bit, and names and statistics stay.
    model.eval(), other.eval()
    with torch.no_grad():
        assert torch.equal(model(images), other(images))
    assert list(before) == list(other.state_dict())
    assert all(torch.equal(before[key], tensor) for key, tensor in other.state_dict().items() if "running" in key)


def test_a_norm_that_holds_its_activation() -> None:
    """timm's BatchNormAct2d: the activation stays."""
    from launcher import heads
    from launcher.training.model import build_model

    backbone = backbones.Timm(name="tf_efficientnet_lite0", weights=None, image_size=32)
    model = build_model(backbone, heads.Linear(), 5, 0).double()
    with torch.no_grad():
        seasoned(model)
    set_train_mode(model, "keep")
    other = copy.deepcopy(model)
    assert fold_whole(other, MANY, 32) > 40
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    (outputs, wanted), (ours, found) = gradients(model, images), gradients(other, images)
    torch.testing.assert_close(ours, outputs, rtol=1e-9, atol=1e-9)
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-7, atol=1e-9) for name in wanted)


def test_what_is_left_as_it_is() -> None:
    model = built("resnet18", 32, ("*",))
    set_train_mode(model, "update")
    assert fold_whole(model, MANY, 32) == 0  # it takes statistics of each batch
    set_train_mode(model, "keep")
    # Of one image, only the first convolution gives more pixels than each of its channels has weights.
    assert fold_whole(copy.deepcopy(model), 1, 32) == 1
    assert 0 < fold_whole(copy.deepcopy(model), 16, 32) < 20
    model.backbone.layer1[0].conv1.register_forward_hook(lambda *_: None)
    model.backbone.layer1[1].bn2.register_forward_pre_hook(lambda *_: None)
    assert fold_whole(model, MANY, 32) == 18
    assert set(model.state_dict()) == set(built("resnet18", 32, ("*",)).state_dict())


def test_a_copy_is_folded_for_itself() -> None:
    model = built("resnet18", 32, ("*",))
    set_train_mode(model, "keep")
    fold_whole(model, MANY, 32)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for layer in norms(other):
            layer.weight.zero_()
    images = torch.randn(2, 3, 32, 32)
    outputs, wanted = gradients(other, images)
    assert not torch.equal(outputs, gradients(model, images)[0])
    assert all(layer.weight.grad is not None for layer in norms(other))
    assert wanted


@pytest.mark.parametrize("where", ["everything", "a part"])
def test_a_run_learns_the_same_with_and_without(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = (("head", 1.0), ("backbone.block2", 0.5), ("backbone", 0.0 if where == "a part" else 0.5))
    phase = dataclasses.replace(tiny.recipe.freeze_plan[0], name="trained", rules=rules)
    recipe = dataclasses.replace(tiny.parity, freeze_plan=(phase,), cache="off")
    seen: list[int] = []
    real = ddp.wrap

    def wrap(run: object, model: TransferModel, *more: object) -> nn.Module:
        wrapped = real(run, model, *more)  # type: ignore[arg-type]
        seen.append(folded(model))
        return wrapped

    monkeypatch.setattr("launcher.training.phase.wrap", wrap)
    train(recipe, tmp_path / "folded")
    with monkeypatch.context() as patched:
        patched.setattr(ddp, "fold", lambda *_: None)
        train(recipe, tmp_path / "plain")
    assert seen == [1 if where == "a part" else 2, 0]
    ours, theirs = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("folded", "plain"))
    assert max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in theirs) < 1e-6
