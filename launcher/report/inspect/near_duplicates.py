"""Validation images that are (nearly) among the training images, so that what is measured on them is no test."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import PIL.Image
import torch

from launcher.data.decoding import to_rgb
from launcher.recipe.protocols import ImageSource

CLOSE = 0.5
"""The cosine of centred features from which on the pixels of two images are compared."""
ALIKE = 0.9
"""The correlation of pixels, of images shrunk to SIDE x SIDE, from which on two images are called near-duplicates. Of
the 15 photographs of ants and bees that were nearest to one of 245 others, none came to 0.5."""
ALIKE_IF_SMALL = 0.995
"""The same for images of less than SMALL pixels a side: two handwritten digits of 8 x 8 may well come to 0.98."""
SMALL = 48
SIDE = 24
NEIGHBOURS = 3
MOST_PAIRS = 2000
"""The most pairs whose pixels are compared, those closest in features first."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A validation image and a training image that are nearly the same."""

    val: int
    train: int
    """The index of the training image among the features."""
    similarity: float
    """The cosine of the centred features."""
    pixels: float
    """The correlation of the pixels."""
    mirrored: bool


def near_duplicates(
    train: torch.Tensor, val: torch.Tensor, train_images: ImageSource, val_images: ImageSource, of_training: list[int]
) -> list[Pair]:
    """Return pairs that are close in features and alike in pixels, mirrored or not, the most alike first.

    Features alone also find images of the same kind, and there are too many images to compare the pixels of all.
    `train` is (n, d), `val` (m, d).
    """
    pairs = []
    candidates = sorted(_close(train, val), reverse=True)[:MOST_PAIRS]
    small: dict[tuple[str, int], tuple[np.ndarray, int]] = {}

    def of(which: str, source: ImageSource, index: int) -> tuple[np.ndarray, int]:
        if (which, index) not in small:
            image = to_rgb(source.read(index))
            small[which, index] = _small(image), min(image.size)
        return small[which, index]

    for similarity, val_index, train_index in candidates:
        ours, side = of("val", val_images, val_index)
        theirs, other = of("train", train_images, of_training[train_index])
        straight, mirrored = _correlation(ours, theirs), _correlation(ours[:, ::-1], theirs)
        if max(straight, mirrored) >= (ALIKE if min(side, other) >= SMALL else ALIKE_IF_SMALL):
            pairs.append(Pair(val_index, train_index, similarity, max(straight, mirrored), mirrored > straight))
    return sorted(pairs, key=lambda pair: (-pair.pixels, -pair.similarity))


def _close(train: torch.Tensor, val: torch.Tensor) -> Iterator[tuple[float, int, int]]:
    center = train.mean(dim=0)
    ours, theirs = (torch.nn.functional.normalize(x - center, dim=1) for x in (train, val))
    for begin in range(0, len(theirs), 1024):
        nearest = (theirs[begin : begin + 1024] @ ours.T).topk(min(NEIGHBOURS, len(ours)), dim=1)
        for row, (values, indices) in enumerate(zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True)):
            for value, index in zip(values, indices, strict=True):
                if value >= CLOSE:
                    yield value, begin + row, index


def _small(image: PIL.Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((SIDE, SIDE), PIL.Image.Resampling.BOX), dtype=np.float64)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / size if size > 0 else 0.0
