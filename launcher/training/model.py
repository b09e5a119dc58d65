"""The network of a run: backbone and head, the parameters that train, and the modules in training mode."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from launcher.compat import is_batch_norm, layout_versions, versioned_state
from launcher.recipe.abilities import HasInitialisation
from launcher.recipe.phases import NormStatistics
from launcher.recipe.protocols import Backbone, Head
from launcher.training.failures import part_at_work


class TransferModel(nn.Module):
    """A network from images (N, 3, S, S) to outputs (N, num_outputs), with parameters `backbone.*` and `head.*`."""

    contiguous = False
    """True if it computes on images in NCHW layout instead of channels last, in which batches arrive."""

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
    """Move the model to a device, in its memory format, and return it.

    Channels last is faster for convolutions: EfficientNet-lite0 at 64 px trained at 116 images/s instead of 64 on one
    thread of an AMD EPYC.
    """
    return model.to(memory_format=memory_format_of(model)).to(device)


def memory_format_of(model: TransferModel) -> torch.memory_format:
    """Return the memory format in which a model computes."""
    return torch.contiguous_format if model.contiguous else torch.channels_last


def build_model(backbone: Backbone, head: Head, num_outputs: int, seed: int) -> TransferModel:
    """Build the network before any training, the same on every process; new weights are drawn from `seed`.

    Raise UserError with the message of any exception that a part's `build` raises.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with part_at_work("backbone"):
            body = backbone.build()
        # The head has a seed of its own: the backbone's draws (for all its weights, if it starts from random ones) may
        # change with its version, and the head should not change with them.
        torch.manual_seed(seed + 1)
        with part_at_work("head"):
            return TransferModel(body, head.build(body, num_outputs))


def freeze(model: nn.Module, lr_scales: Mapping[str, float]) -> None:
    """Make exactly the parameters with a positive lr_scale trainable."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(lr_scales[name] > 0)
        parameter.grad = None


def norm_layers_that_train(model: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers with a trainable parameter of their own, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_batch_norm(module) and any(p.requires_grad for p in module.parameters(recurse=False))
    }


def set_train_mode(model: nn.Module, norm_statistics: NormStatistics) -> None:
    """Put modules that train in training mode and frozen ones in evaluation mode.

    The mode matters for BatchNorm, dropout and stochastic depth. A module trains if it or a module inside it has a
    trainable parameter. A module without parameters (dropout) follows the nearest enclosing module that has some. With
    norm_statistics "keep" every BatchNorm layer is in evaluation mode. This must be called each time instead of
    `model.train()`, which undoes every `eval()` below it.
    """

    def visit(module: nn.Module, around_trains: bool) -> None:
        parameters = list(module.parameters())
        trains = any(p.requires_grad for p in parameters) if parameters else around_trains
        module.training = trains and not (is_batch_norm(module) and norm_statistics == "keep")
        for child in module.children():
            visit(child, trains)

    visit(model, True)


def changing_tensors(model: nn.Module, norm_statistics: NormStatistics) -> set[str]:
    """Return the names of the parameters and buffers that a phase may change; all others are frozen."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if norm_statistics == "update":
        for name, layer in norm_layers_that_train(model).items():
            names |= {f"{name}.{buffer}" for buffer, _ in layer.named_buffers(recurse=False)}
    return names


def cpu_state(model: nn.Module, names: Collection[str] | None = None) -> dict[str, torch.Tensor]:
    """Return a copy of the model's state on the CPU, of the named tensors or of all."""
    state: dict[str, Any] = model.state_dict()
    return {
        name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items() if names is None or name in names
    }


def in_closed_form(head: object) -> bool:
    """Return whether a recipe's head starts from ridge regression."""
    return isinstance(head, HasInitialisation) and head.init == "ridge"


def share_tensors(model: nn.Module, other: nn.Module) -> None:
    """Make a model use the tensors of its copy, so that memory is used once; both change together from then on."""
    theirs = other.state_dict()
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = theirs[name].data


def load_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load a state from `cpu_state` or a checkpoint. Raise RuntimeError if names or shapes differ."""
    model.load_state_dict(versioned_state(tensors, layout_versions(model)))
