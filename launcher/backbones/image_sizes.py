"""Image sizes that torchvision's networks accept."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from typing import TYPE_CHECKING

from launcher.errors import UserError
from launcher.recipe.protocols import Preprocessing

if TYPE_CHECKING:
    import torch

# The stem and four blocks halve the side five times, and the last grid is cut into windows of 7.
MAXVIT_MULTIPLE = 2**5 * 7


def patch_size(name: str) -> int:
    """Return the side of a ViT's patches in pixels, with which torchvision ends the network's name (vit_b_16)."""
    return int(name.rpartition("_")[2])


def check_image_size(name: str, family: str, image_size: int, min_size: int) -> None:
    """Raise UserError for a size that the network cannot take; the message says which sizes are valid.

    `family` is the torchvision module that defines the network; `min_size` is the smallest size that the weights state.
    """
    if family in ("vision_transformer", "maxvit"):
        # The smallest size that a ViT states is its training size; others work with interpolated position embeddings.
        step = MAXVIT_MULTIPLE if family == "maxvit" else patch_size(name)
        if image_size % step:
            lower = image_size // step * step
            nearby = f"{lower} or {lower + step}" if lower else str(step)
            raise UserError(
                f"backbone.image_size={image_size}: {name} needs a multiple of {step} pixels, such as {nearby}"
            )
    elif image_size < min_size:
        raise UserError(f"backbone.image_size={image_size}: {name} needs at least {min_size} pixels")


def at_size(preset: Preprocessing, image_size: int | None) -> Preprocessing:
    """Return `preset` for another image size, with the shorter side before the crop scaled by the same ratio."""
    if image_size is None or image_size == preset.image_size:
        return preset
    resize_size = round(preset.resize_size * image_size / preset.image_size)
    return dataclasses.replace(preset, image_size=image_size, resize_size=resize_size)


def fit_position_embeddings(
    tensors: dict[str, torch.Tensor], name: str, image_size: int, may_interpolate: bool, source: str
) -> dict[str, torch.Tensor]:
    """Return a ViT's tensors with position embeddings for `image_size`, interpolated (torchvision, bicubic) if needed.

    Raises UserError if they are for another size and `may_interpolate` is false, and if they are of no square image.
    """
    from torchvision.models.vision_transformer import interpolate_embeddings

    stored = tensors.get("encoder.pos_embedding")
    patch = patch_size(name)
    if stored is None or stored.ndim != 3 or stored.shape[1] == (image_size // patch) ** 2 + 1:
        return tensors
    trained_at = math.isqrt(stored.shape[1] - 1) * patch
    if not may_interpolate:
        raise UserError(
            f"backbone.weights: {source} was trained at {trained_at} px, {name} is built for {image_size} px: give "
            f"backbone.image_size={trained_at} (at any other multiple of {patch}, position embeddings are interpolated)"
        )
    if (trained_at // patch) ** 2 + 1 != stored.shape[1]:
        raise UserError(f"backbone.weights: {source} has position embeddings of no square image: {tuple(stored.shape)}")
    return dict(interpolate_embeddings(image_size, patch, OrderedDict(tensors)))
