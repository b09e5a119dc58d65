"""Modules of the heads, kept apart from `heads`, which recipes import, because they need torch."""

from __future__ import annotations

import torch
from torch import nn


class LinearHead(nn.Linear):
    """Dropout followed by a linear layer, (N, in_features) -> (N, out_features).

    It is a subclass of nn.Linear, not a Sequential, so that its parameters are called `weight` and `bias` with and
    without dropout, as in the plain network.
    """

    def __init__(self, in_features: int, out_features: int, *, dropout: float, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.weight, std=0.01)
        if bias:
            nn.init.zeros_(self.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = super().forward(self.dropout(features))
        return outputs
