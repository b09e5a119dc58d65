"""Every classification network of torchvision, run for real: none of them is looked at by structure alone.

The networks are built without drawing their large weights: those become views into one random vector, so that even
vit_h_14 (632 million parameters) takes no memory and no time. Equal weights are all that the comparisons need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from launcher.backbones import Torchvision, plain_state_dict
from launcher.recipe.protocols import Backbone

NAMES = torchvision.models.list_models(module=torchvision.models)
LARGE = 10_000
"""Parameters from this size on are views into the shared vector."""


class WithoutLargeDraws(TorchFunctionMode):
    """Leaves large parameters undrawn while a network is built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        drawing = name.endswith(("normal_", "uniform_")) or name in ("erfinv_", "mul_", "add_", "clamp_")
        drawn = args[0] if args else (kwargs or {}).get("tensor")
        if drawing and isinstance(drawn, nn.Parameter) and drawn.numel() >= LARGE:
            return drawn
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def values() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    # The longest parameter is VGG's classifier.0.weight. +-0.03 keeps activations of all networks finite.
    return torch.empty(25088 * 4096).uniform_(-0.03, 0.03, generator=generator)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # These networks see two small images: more threads only wait for one another (3x slower on a busy machine).
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def without_large_truncated_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    # trunc_normal_ is Python inside torch, in many steps, which the mode above would have to know one by one.
    draw = nn.init.trunc_normal_

    def small_only(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return draw(tensor, *args, **kwargs) if tensor.numel() < LARGE else tensor

    monkeypatch.setattr(nn.init, "trunc_normal_", small_only)


def fill(network: nn.Module, values: torch.Tensor) -> None:
    for index, parameter in enumerate(network.parameters()):
        if parameter.numel() >= LARGE:
            start = index * 101 % max(1, len(values) - parameter.numel())
            parameter.data = values[start : start + parameter.numel()].view(parameter.shape)


def size_for(name: str) -> int:
    if name.startswith("vit_"):
        return 2 * int(name.rpartition("_")[2])
    if name in ("swin_t", "swin_s", "swin_b"):
        return 28  # fills their windows of 7x7 without padding
    # BatchNorm over two images needs a few pixels more than the smallest possible size to have a gradient.
    return {"maxvit_t": 224, "inception_v3": 75, "convnext_large": 32, "regnet_y_128gf": 32}.get(name, 64)


def input_of(layer: nn.Module, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(images)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_is_the_plain_network_up_to_its_classifier(name: str, values: torch.Tensor) -> None:
    size = size_for(name)
    part = Torchvision(name=name, weights=None, image_size=size if name.startswith("vit_") else None)
    described = part.plain()
    with WithoutLargeDraws():
        backbone = part.build()
        original = torchvision.models.get_model(name, weights=None, **described["kwargs"])
        seven = torchvision.models.get_model(name, weights=None, num_classes=7, **described["kwargs"])
    fill(original, values)
    classifier = original.get_submodule(backbone.classifier_name)

    # Names, in their order, are the original's; its state dict loads; the classifier alone is gone.
    state = {k: v for k, v in original.state_dict().items() if not k.startswith(f"{backbone.classifier_name}.")}
    assert list(backbone.state_dict()) == list(state)
    assert len(original.state_dict()) - len(state) == 1 + backbone.classifier_has_bias  # type: ignore[operator]
    backbone.load_state_dict(with_version(state), strict=True, assign=True)
    if isinstance(classifier, nn.Linear):
        assert backbone.num_features == classifier.in_features
    assert isinstance(part, Backbone)

    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        expected = input_of(classifier, original.eval(), images)
        features = backbone.eval()(images)
    if expected.ndim == 4:  # SqueezeNet classifies each place and then takes the mean over the image
        expected = expected.mean((2, 3), keepdim=True).flatten(1)
    assert features.shape == (2, backbone.num_features)
    assert features.isfinite().all()
    assert features.std() > 0
    assert torch.equal(features, expected)

    # With a new head it loads into the plain network with seven classes, which then says the same.
    head = nn.Linear(backbone.num_features, 7, bias=backbone.classifier_has_bias)  # type: ignore[arg-type]
    joined = plain_state_dict(backbone, backbone.state_dict(), head.state_dict())
    seven.load_state_dict(with_version(joined), strict=True, assign=True)
    if not name.startswith("squeezenet"):  # tested by itself: its outputs are cut off at zero
        with torch.inference_mode():
            assert torch.equal(seven.eval()(images), head(features))

    # The two train together, in train mode, down to the first layer.
    loss = nn.functional.cross_entropy(head(backbone.train()(images)), torch.tensor([0, 6]))
    first = next(backbone.parameters())
    gradients = torch.autograd.grad(loss, [first, head.weight])
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients)


def with_version(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Only MNASNet asks for it (the note of `plain` says so); the others take it as it is."""
    from collections import OrderedDict

    versioned: Any = OrderedDict(state)
    versioned._metadata = {"": {"version": 2}}
    return versioned
