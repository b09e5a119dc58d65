"""Heads: the new layers on top of a backbone's features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from launcher.recipe.abilities import DescribesClassifierBias
from launcher.recipe.part import part

if TYPE_CHECKING:
    from torch import nn


@part
class Linear:
    """One linear layer.

    Weights start at N(0, 0.01), so that the first outputs are near zero, and biases at 0.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the features."""
    init: Literal["normal", "ridge"] = "normal"
    """Initial weights. "normal": as described above. "ridge": the solution of ridge regression on the features of the
    training images, with the L2 penalty that does best on a fifth of them (https://arxiv.org/abs/2202.10054 explains
    why). This takes one pass over the data; fine-tuning starts from there."""

    def build(self, backbone: nn.Module, num_outputs: int) -> nn.Module:
        from launcher.recipe.head_modules import LinearHead

        # MaxViT's own classifier has no bias; a head without one loads into the plain network with strict=True.
        bias = bool(backbone.classifier_has_bias) if isinstance(backbone, DescribesClassifierBias) else True
        return LinearHead(num_features_of(backbone), num_outputs, dropout=self.dropout, bias=bias)


@part
class MLP:
    """One hidden layer with GELU, then a linear layer.

    The hidden layer starts with PyTorch's default initialisation, the last one like `Linear`.
    """

    hidden: int = Field(default=512, ge=1)
    """Width of the hidden layer."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the last layer."""

    def build(self, backbone: nn.Module, num_outputs: int) -> nn.Module:
        from torch import nn

        from launcher.recipe.head_modules import LinearHead

        last = LinearHead(self.hidden, num_outputs, dropout=self.dropout, bias=True)
        return nn.Sequential(nn.Linear(num_features_of(backbone), self.hidden), nn.GELU(), last)


def num_features_of(backbone: nn.Module) -> int:
    """Return the width of the backbone's features, which a head of your own takes as its input."""
    return int(backbone.num_features)  # type: ignore[arg-type]
