"""Inference in chunks on CPUs, which takes less memory and less time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

PIXELS = 8 * 224 * 224
"""Pixels of a chunk. For batches of 32 at 224 px on 2 cores of an AMD EPYC, up to layer 3, in float32, chunks of 8
images took 0.86 of the time of the whole batch (ResNet-18) and 0.85 (ResNet-50), chunks of 16 took 0.91 and chunks of 4
took 0.90, with every bit the same. The activations between two layers are a quarter as large: 26 MB instead of 103 MB
behind ResNet's first convolution."""

Outputs = TypeVar("Outputs", torch.Tensor, tuple[torch.Tensor, ...])


def in_pieces(module: Callable[[torch.Tensor], Outputs], images: torch.Tensor) -> Outputs:
    """Apply a module to images (N, 3, H, W) in chunks and return its outputs, whose first dimension is N.

    This is for use without gradients. GPUs take all images at once.
    """
    size = max(1, PIXELS // (images.shape[-2] * images.shape[-1]))
    if images.device.type != "cpu" or len(images) <= size:
        return module(images)
    made = [module(piece) for piece in torch.split(images, size)]
    if isinstance(made[0], torch.Tensor):
        return torch.cat(made)
    return tuple(torch.cat(parts) for parts in zip(*made, strict=True))
