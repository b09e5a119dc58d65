"""The network of a run: backbone and head, what of it trains, and which of its modules are in training mode."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from launcher.recipe.phases import NormStatistics
from launcher.recipe.protocols import Backbone, HasInitialisation, Head
from launcher.training.failures import part_at_work


class TransferModel(nn.Module):
    """Images (N, 3, S, S) to outputs (N, num_outputs). Parameters are named `backbone.*` and `head.*`."""

    contiguous = False
    """Whether it computes with images as NCHW, and not with channels last as batches come."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.contiguous:
            images = images.contiguous()
        outputs: torch.Tensor = self.head(self.backbone(images))
        return outputs


def place(model: TransferModel, device: torch.device) -> TransferModel:
    """The model on a device, in its memory format.

    Channels last is faster for convolutions: EfficientNet-lite0 at 64 px trained 116 images/s instead of 64 on an AMD
    EPYC's thread.
    """
    return model.to(memory_format=memory_format_of(model)).to(device)


def memory_format_of(model: TransferModel) -> torch.memory_format:
    return torch.contiguous_format if model.contiguous else torch.channels_last


def build_model(backbone: Backbone, head: Head, num_outputs: int, seed: int) -> TransferModel:
    """The network before any training, the same on every process: new weights are drawn from `seed`.

    Raises UserError with what a part's `build` raises.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with part_at_work("backbone"):
            body = backbone.build()
        # A generator of the head's own: what the backbone draws (all of it, when it starts from random weights) may
        # change with its version, and the head should not change with it.
        torch.manual_seed(seed + 1)
        with part_at_work("head"):
            return TransferModel(body, head.build(body, num_outputs))


def freeze(model: nn.Module, lr_scales: Mapping[str, float]) -> None:
    """Make exactly the parameters with a positive lr_scale trainable."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(lr_scales[name] > 0)
        parameter.grad = None


def norm_layers_that_train(model: nn.Module) -> dict[str, nn.Module]:
    """BatchNorm layers with a trainable parameter of their own, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and any(p.requires_grad for p in module.parameters(recurse=False))
    }


def set_train_mode(model: nn.Module, norm_statistics: NormStatistics) -> None:
    """Training mode for what trains, evaluation mode for what is frozen (BatchNorm, dropout, stochastic depth).

    A module trains if it or something in it has a trainable parameter. One without parameters (dropout) goes with the
    nearest module around it that has some. With norm_statistics "keep" every BatchNorm layer is in evaluation mode.
    Must be called instead of `model.train()`, each time: `train()` undoes every `eval()` below it.
    """

    def visit(module: nn.Module, around_trains: bool) -> None:
        parameters = list(module.parameters())
        trains = any(p.requires_grad for p in parameters) if parameters else around_trains
        module.training = trains and not (isinstance(module, _BatchNorm) and norm_statistics == "keep")
        for child in module.children():
            visit(child, trains)

    visit(model, True)


def changing_tensors(model: nn.Module, norm_statistics: NormStatistics) -> set[str]:
    """Names of the parameters and buffers that a phase may change; all others are frozen."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if norm_statistics == "update":
        for name, layer in norm_layers_that_train(model).items():
            names |= {f"{name}.{buffer}" for buffer, _ in layer.named_buffers(recurse=False)}
    return names


def cpu_state(model: nn.Module, names: Collection[str] | None = None) -> dict[str, torch.Tensor]:
    """A copy of the model's state on the CPU; of the named tensors, or all."""
    state: dict[str, Any] = model.state_dict()
    return {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items() if names is None or name in names
    }


def in_closed_form(head: object) -> bool:
    """Whether a recipe's head starts where ridge regression puts it."""
    return isinstance(head, HasInitialisation) and head.init == "ridge"


def share_tensors(model: nn.Module, other: nn.Module) -> None:
    """Make a model's tensors those of its copy, so that the memory is used once: they change together from then on."""
    theirs = other.state_dict()
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = theirs[name].data


def load_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `cpu_state` gave, or a checkpoint holds. Raises RuntimeError where names or shapes differ."""
    state = OrderedDict(tensors)
    # The versions of the modules' layouts, which files do not hold: torchvision's MNASNet refuses a state without.
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state)
