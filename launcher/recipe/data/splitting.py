"""A seeded part of the training images set aside for validation: the same on every process and machine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from launcher.errors import UserError
from launcher.recipe.data.sources import Subset
from launcher.recipe.protocols import ImageSource, Split, Splits

Indices = npt.NDArray[np.int64]


def split_indices(count: int, val_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Indices of `count` images for training and for validation, sorted. With 2 images or more, neither is empty."""
    order = _order(count, seed)
    num_val = _num_val(count, val_fraction)
    return np.sort(order[num_val:]), np.sort(order[:num_val])


def stratified_indices(classes: Indices, val_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """The same fraction of each class (int64 (N,)). A class with 2 images or more is in both; a single one trains."""
    order = _order(len(classes), seed)
    grouped = order[np.argsort(classes[order], kind="stable")]
    ends = np.cumsum(np.unique(classes, return_counts=True)[1])
    is_val = np.zeros(len(classes), dtype=bool)
    for group in np.split(grouped, ends[:-1]):
        is_val[group[: _num_val(len(group), val_fraction)]] = True
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


def set_aside(
    images: ImageSource,
    targets: npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.float64],
    names: tuple[str, ...],
    val_fraction: float,
    seed: int,
    skipped: tuple[str, ...] = (),
) -> Splits:
    """Splits of images that came without a validation split: stratified for classes, plain for other targets.

    Raises UserError where there are too few images for that.
    """
    if targets.ndim == 1:
        train, val = stratified_indices(targets.astype(np.int64), val_fraction, seed)
    else:
        train, val = split_indices(len(targets), val_fraction, seed)
    if not len(val):
        raise UserError(
            f"data: {len(targets)} images in {len(names)} classes are too few to set some aside for validation; "
            "at least one class needs 2 images"
            if targets.ndim == 1
            else f"data: {len(targets)} images are too few to set some aside for validation; at least 2 are needed"
        )
    return Splits(
        train=Split(images=Subset(images, train), targets=targets[train]),
        val=Split(images=Subset(images, val), targets=targets[val]),
        names=names,
        skipped=skipped,
    )


def _num_val(count: int, val_fraction: float) -> int:
    return min(max(round(count * val_fraction), 1), count - 1) if count > 1 else 0


def _order(count: int, seed: int) -> Indices:
    # numpy promises the stream of a bit generator to be the same in every version, that of shuffle() not (NEP 19).
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable").astype(np.int64)
