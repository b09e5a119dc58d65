"""Weights of a trained network under the names of the plain torchvision or timm network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from launcher.recipe.abilities import DescribesClassifierKind, NamesClassifier

if TYPE_CHECKING:
    import torch
    from torch import nn


def classifier_name_of(backbone: nn.Module) -> str | None:
    """Return the dotted name of the classifier that was removed from the original network, or None if unknown."""
    return backbone.classifier_name if isinstance(backbone, NamesClassifier) else None


def classifier_is_conv(backbone: nn.Module) -> bool:
    """Return whether the removed classifier was a 1x1 convolution."""
    return isinstance(backbone, DescribesClassifierKind) and bool(backbone.classifier_is_conv)


def plain_state_dict(
    backbone: nn.Module, backbone_state: Mapping[str, torch.Tensor], head_state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Join the state dicts of backbone and head into one, without a copy of the tensors.

    If the backbone is a `NamesClassifier`, the names are those of the original network: the head's `weight` and `bias`
    become the classifier's, and the weight is reshaped to (num_outputs, num_features, 1, 1) if that was a 1x1
    convolution (SqueezeNet). A head with other names (an MLP) keeps them behind the classifier's name. For any other
    backbone, the names are `backbone.*` and `head.*`.
    """
    name = classifier_name_of(backbone)
    if name is None:
        joined = {f"backbone.{key}": tensor for key, tensor in backbone_state.items()}
        return joined | {f"head.{key}": tensor for key, tensor in head_state.items()}
    joined = dict(backbone_state)
    for key, tensor in head_state.items():
        if key == "weight" and tensor.ndim == 2 and classifier_is_conv(backbone):
            tensor = tensor[:, :, None, None]
        joined[f"{name}.{key}"] = tensor
    return joined
