"""Structure of a timm network, determined without its weights."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any, cast

from launcher.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """Names and shapes of a network, built on the meta device: no memory, 0.1 to 1 s."""

    full_name: str
    build_arguments: dict[str, Any]
    names: tuple[str, ...]
    """Names of all tensors, classifiers included, in order."""
    classifier: tuple[str, nn.Module] | None
    """Name and layer of the only linear classifier; None if there are several (distilled networks, auxiliary heads), if
    it is more than a linear layer, or if there is none."""

    @classmethod
    def of(cls, full_name: str, build_arguments: dict[str, Any]) -> Skeleton:
        """Build the skeleton of a network. Raises UserError for an image size that the network does not take."""
        network = _on_meta(full_name, 1, build_arguments)
        bare = list(_on_meta(full_name, 0, build_arguments).state_dict())
        names = tuple(network.state_dict())
        return cls(full_name, build_arguments, names, _single_classifier(network, names, bare))

    def output_width(self, image_size: int) -> int:
        """Return the number of output features, found by a forward pass on the meta device.

        Raises UserError if the output is not (N, features), and for a size at which the network cannot work.
        """
        import torch

        network = _on_meta(self.full_name, 0, self.build_arguments).eval()
        try:
            features = network(torch.empty(2, 3, image_size, image_size, device="meta"))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(f"backbone.image_size={image_size}: {self.full_name} cannot work at it: {error}") from error
        if not isinstance(features, torch.Tensor) or features.ndim != 2:
            shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise UserError(f"backbone.name={self.full_name!r}: it gives {shape} for two images, not (2, features)")
        return features.shape[1]

    def at_image_size(self, tensors: dict[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
        """Return `tensors` with position embeddings resampled to the size of `network` by timm's own filter for it."""
        own = network.state_dict()
        if all(tensor.shape == own[name].shape for name, tensor in tensors.items() if name in own):
            return tensors
        adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        return tensors if adapt is None else cast("dict[str, torch.Tensor]", adapt(tensors, network))


def _on_meta(full_name: str, num_classes: int, build_arguments: dict[str, Any]) -> nn.Module:
    import timm
    import torch

    try:
        with torch.device("meta"):
            return cast("nn.Module", timm.create_model(full_name, num_classes=num_classes, **build_arguments))
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        if "img_size" not in build_arguments:
            raise
        size = build_arguments["img_size"]
        raise UserError(f"backbone.image_size={size}: {full_name} cannot be built for it: {error}") from error


def _single_classifier(
    network: nn.Module, names: tuple[str, ...], names_without: list[str]
) -> tuple[str, nn.Module] | None:
    from torch import nn

    layer = cast(Any, network).get_classifier() if hasattr(network, "get_classifier") else None
    path = next((name for name, module in network.named_modules() if module is layer), None)
    is_linear = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    if path is None or not is_linear:
        return None
    # LeViT and others normalise inside the classifier, and VOLO has a second one: removing the classifier then removes
    # more than this layer.
    if [name for name in names if not name.startswith(f"{path}.")] != names_without:
        return None
    return path, cast("nn.Module", layer)
