"""Frozen prefix as an inference engine: no autograd graph, BatchNorm folded, weights cast once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import fx, nn

from launcher.training.chunks import in_pieces
from launcher.training.feature_cache.cut import Cut
from launcher.training.feature_cache.folding import with_folded_norms
from launcher.training.model import memory_format_of

FOLDING_TOLERANCE = 1e-4
"""Largest difference that folding BatchNorm may make, as a share of the largest output.

Measured in float32: 7e-7 for ResNet-50 and 4e-7 for ResNet-18.
"""

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    """Return the dtype of a precision: "float32", "bf16" or "fp16"."""
    return _DTYPES[precision]


class Prefix:
    """Engine from images on the device to boundary tensors, which are detached and have their channels last."""

    def __init__(self, module: nn.Module, autocast: Callable[[], AbstractContextManager[None]]) -> None:
        self.module = module
        self._autocast = autocast

    def dtypes(self, image_size: int) -> tuple[torch.dtype, ...]:
        """Return the dtypes of the boundary tensors, which may differ under autocast."""
        device = next(self.module.parameters()).device
        return tuple(tensor.dtype for tensor in self(torch.zeros(1, 3, image_size, image_size, device=device)))

    @torch.no_grad()
    def __call__(
        self, images: torch.Tensor, normalise: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return the boundary tensors of `images`, after `normalise` if it is given.

        Normalisation is done piece by piece: a batch of 32 at 224 px has 5 MB as bytes, and 19 MB as floats.
        """
        with self._autocast():
            return in_pieces(self.module if normalise is None else lambda some: self.module(normalise(some)), images)


def engine(
    cut: Cut, *, autocast: Callable[[], AbstractContextManager[None]], precision: str, fold: bool, image_size: int
) -> tuple[Prefix, bool]:
    """Return the prefix of a cut, and whether it holds copies of weights (folded or cast), not the network's own.

    With `fold`, BatchNorm layers are folded into the convolutions before them if the outputs on random images stay
    within FOLDING_TOLERANCE: 7 % faster for ResNet-50 and 23 % for EfficientNet-B0 on 2 cores of an AMD EPYC, in
    float32. Under autocast, the weights of convolutions and linear layers are cast once instead of in each forward
    pass, which changes no bit.
    """
    module = cut.prefix.eval()
    copied = False
    if fold and isinstance(module, fx.GraphModule):
        folded = with_folded_norms(module, memory_format_of(cut.tail.model))
        if folded is not None and _is_near(module, folded, image_size):
            module, copied = folded, True
    if precision in ("bf16", "fp16"):
        module, copied = module if copied else copy.deepcopy(module), True
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.to(dtype_of(precision))
    for parameter in module.parameters() if copied else ():
        parameter.requires_grad_(False)
    return Prefix(module, autocast), copied


@torch.no_grad()
def _is_near(module: nn.Module, folded: nn.Module, image_size: int) -> bool:
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, image_size, image_size, generator=generator).to(weight.device)
    return all(
        bool((before - after).abs().max() <= FOLDING_TOLERANCE * before.abs().max())
        for before, after in zip(module(images), folded(images), strict=True)
    )
