"""MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899) with the same images for any split of the batch.

Each sample is mixed with its neighbour in the global batch (positions 2i and 2i+1), and the random draws for a sample
depend only on (seed, epoch, sample). Micro-batches start at even positions, so a pair is never split.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from launcher.recipe.abilities import HasCutMix, HasMixUp
from launcher.recipe.protocols import Augmentation
from launcher.training.data_order import seed_for


@dataclasses.dataclass(frozen=True)
class Mixing:
    """The MixUp and CutMix settings of an augmentation; None for each that it lacks."""

    mixup_alpha: float | None
    cutmix_alpha: float | None

    @classmethod
    def of(cls, augment: Augmentation) -> Mixing:
        """Return the settings of a recipe's augmentation."""
        return cls(
            mixup_alpha=augment.mixup_alpha if isinstance(augment, HasMixUp) else None,
            cutmix_alpha=augment.cutmix_alpha if isinstance(augment, HasCutMix) else None,
        )

    def __bool__(self) -> bool:
        return self.mixup_alpha is not None or self.cutmix_alpha is not None


def mix(
    tensors: Sequence[torch.Tensor],
    indices: torch.Tensor,
    encoded: torch.Tensor,
    *,
    mixup_alpha: float | None,
    cutmix_alpha: float | None,
    seed: int,
    epoch: int,
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return mixed tensors, (n, ...) each, and float targets (n, num_outputs).

    `tensors` are images (n, 3, S, S) or, for MixUp, tensors computed from them; `indices` are the indices of their
    samples. If both alphas are given, each sample takes MixUp or CutMix by a fair draw. A last sample without a
    neighbour stays as it is.
    """
    mixed, targets = tuple(tensor.clone() for tensor in tensors), encoded.clone()
    paired = len(targets) - len(targets) % 2
    for place in range(paired):
        partner = place ^ 1
        draw = np.random.Generator(np.random.PCG64(seed_for("mix", seed, epoch, int(indices[place]))))
        use_cutmix = cutmix_alpha is not None and (mixup_alpha is None or draw.random() < 0.5)
        alpha = (cutmix_alpha if use_cutmix else mixup_alpha) or 0.0
        share = float(draw.beta(alpha, alpha))  # the weight of the sample itself
        for tensor, before in zip(mixed, tensors, strict=True):
            if use_cutmix:
                share = _paste(tensor[place], before[partner], share, draw)
            else:
                tensor[place] = share * before[place] + (1 - share) * before[partner]
        targets[place] = share * encoded[place] + (1 - share) * encoded[partner]
    return mixed, targets


def _paste(image: torch.Tensor, other: torch.Tensor, share: float, draw: np.random.Generator) -> float:
    """Paste a box of `other` over `image` in place, and return the share of the image that stays."""
    height, width = image.shape[-2:]
    ratio = math.sqrt(1 - share)
    y, x = int(draw.integers(height)), int(draw.integers(width))
    half_y, half_x = int(height * ratio / 2), int(width * ratio / 2)
    top, bottom = max(0, y - half_y), min(height, y + half_y)
    left, right = max(0, x - half_x), min(width, x + half_x)
    image[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return 1 - (bottom - top) * (right - left) / (height * width)
