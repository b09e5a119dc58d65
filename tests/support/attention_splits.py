"""Attention trained with AdamW on several splits: whose weights agree to rounding, and whose cannot."""

from __future__ import annotations

import dataclasses
from typing import Any

import tiny
from launcher import Preprocessing, optim, phases


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """Pictures as 16 patches, one block of attention and MLP, the mean of the patches."""

    packed: bool = True
    """One projection for queries, keys and values (nn.MultiheadAttention), or three."""
    width: int = 16

    def preprocessing(self) -> Preprocessing:
        return Preprocessing(image_size=16, resize_size=16, mean=(0.5,) * 3, std=(0.25,) * 3)

    def build(self) -> Any:
        import torch
        from torch import nn
        from torch.nn.functional import scaled_dot_product_attention

        width, heads = self.width, 2

        class Packed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
                # torch begins with zeros; trained networks have none.
                nn.init.normal_(self.attention.in_proj_bias, std=0.1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]

        class Separate(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                parts = (self.query, self.key, self.value)
                split = [part(x).unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts]
                return self.out(scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

        class Network(nn.Module):
            num_features = width

            def __init__(self, packed: bool) -> None:
                super().__init__()
                self.patches = nn.Conv2d(3, width, 4, stride=4)
                self.positions = nn.Parameter(0.1 * torch.randn(16, width))
                self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
                self.attention = Packed() if packed else Separate()
                self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
                x = x + self.attention(self.norm1(x))
                x = x + self.mlp(self.norm2(x))
                return self.norm3(x).mean(1)  # type: ignore[no-any-return]

        return Network(self.packed)


LR = 1e-3
# The noise in the gradient of the key bias is about 1e-12 here. Torch's eps of 1e-8 would hide most of it: between
# splits the key bias would differ by 1e-5, and not by the learning rate as it does where gradients are larger.
packed = dataclasses.replace(
    tiny.recipe,
    backbone=Attention(),
    optim=optim.AdamW(lr=LR, eps=1e-12),
    freeze_plan=phases.linear_probe(epochs=1) + phases.full_finetune(epochs=3, backbone_lr_scale=1.0),
    final_weights="last",
)
separate = dataclasses.replace(packed, backbone=Attention(packed=False))
