"""The weights of a trained network under the names of the plain torchvision or timm network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def plain_state_dict(
    backbone: nn.Module, backbone_state: Mapping[str, torch.Tensor], head_state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Join backbone and head to one state dict (the tensors are not copied).

    With `backbone.classifier_name` (see `protocols.Backbone`) the names are those of the original network: the head's
    `weight` and `bias` become the classifier's, reshaped to (num_outputs, num_features, 1, 1) where that was a 1x1
    convolution (SqueezeNet). A head with other names (an MLP) keeps them behind the classifier's name.
    Without it the names are `backbone.*` and `head.*`.
    """
    name = getattr(backbone, "classifier_name", None)
    if name is None:
        joined = {f"backbone.{key}": tensor for key, tensor in backbone_state.items()}
        return joined | {f"head.{key}": tensor for key, tensor in head_state.items()}
    joined = dict(backbone_state)
    for key, tensor in head_state.items():
        if key == "weight" and tensor.ndim == 2 and getattr(backbone, "classifier_is_conv", False):
            tensor = tensor[:, :, None, None]
        joined[f"{name}.{key}"] = tensor
    return joined
