"""Grad-CAM: the regions of an image that speak for the predicted class (https://arxiv.org/abs/1610.02391).

The package grad-cam (extra `explain`) computes it, at the last module of the backbone whose output still has positions.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.errors import UserError, pip_install
from launcher.training.model import TransferModel


def check_installed() -> None:
    """Raise UserError if grad-cam is not installed."""
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        raise UserError(f"--explain: grad-cam is not installed; {pip_install('explain')}")


def heat_maps(model: TransferModel, images: torch.Tensor, outputs: Sequence[int]) -> np.ndarray[Any, Any] | None:
    """Return heat maps (n, S, S) in [0, 1] of what speaks for the given output of each image (n, 3, S, S).

    Returns None for a network that keeps no positions. All parameters of the model require gradients afterwards.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    place = last_place(model, images[:1])
    if place is None:
        return None
    layer, to_map = place
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with GradCAM(model=model, target_layers=[layer], reshape_transform=to_map) as cam:
        maps: np.ndarray[Any, Any] = cam(input_tensor=images, targets=[ClassifierOutputTarget(i) for i in outputs])
    return maps


def last_place(model: TransferModel, image: torch.Tensor) -> tuple[nn.Module, Any] | None:
    """Return the last module whose output has positions with gradients, and a function from it to a map (n, c, h, w).

    Such an output is a map with channels first (ResNet) or last (Swin), or a row of tokens, where some without a
    position come first (ViT). More than half of the positions must have a gradient, so that the network's outputs
    depend on the whole image: behind the last block of a ViT, they depend on the class token alone.
    """
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    seen: list[tuple[nn.Module, torch.Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, output: seen.append((module, output)))
        for module in backbone.modules()
        if module is not backbone
    ]
    try:
        with torch.enable_grad():
            output = model(image.clone().requires_grad_(True))
    finally:
        for hook in hooks:
            hook.remove()
    score = output.float().square().sum()
    for module, made in reversed(seen):
        if not isinstance(made, torch.Tensor) or not made.requires_grad or module_runs_twice(module, seen):
            continue
        to_map = as_map(made)
        if to_map is None:
            continue
        (gradient,) = torch.autograd.grad(score, made, retain_graph=True, allow_unused=True)
        if gradient is not None and _everywhere(to_map(gradient)):
            return module, to_map
    return None


def module_runs_twice(module: nn.Module, seen: list[tuple[nn.Module, torch.Tensor]]) -> bool:
    """Return whether a forward pass runs a module more than once."""
    return sum(other is module for other, _ in seen) > 1


def _everywhere(gradient: torch.Tensor) -> bool:
    """Return whether more than half of the positions have a gradient."""
    return bool((gradient.abs().sum(dim=1) > 0).float().mean() > 0.5)


def as_map(made: torch.Tensor) -> Any:
    """Return a function that makes a map (n, c, h, w) of a module's output, or None for one without positions."""
    if made.ndim == 4:
        _, first, second, third = made.shape
        if second == third > 1 and first != second:
            return lambda tensor: tensor
        if first == second > 1:
            return lambda tensor: tensor.permute(0, 3, 1, 2)
        return None
    if made.ndim != 3:
        return None
    tokens = made.shape[1]
    side = math.isqrt(tokens)
    extra = tokens - side * side
    if side < 2 or extra > 8:  # class tokens and registers are fewer than that
        return None
    return lambda tensor: tensor[:, extra:].reshape(len(tensor), side, side, -1).permute(0, 3, 1, 2)
