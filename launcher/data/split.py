"""Validation images set aside from the training images by a seed: the same in every process and on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.data.sources import Subset
from launcher.errors import UserError
from launcher.recipe.protocols import ImageSource, Split, Splits
from launcher.text import plural

Indices = npt.NDArray[np.int64]


def split_indices(count: int, val_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Return sorted indices of `count` images for training and for validation.

    With 2 images or more, neither is empty.
    """
    order = _order(count, seed)
    num_val = _num_val(count, val_fraction)
    return np.sort(order[num_val:]), np.sort(order[:num_val])


def stratified_indices(classes: Indices, val_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Return indices for training and for validation, with the same fraction of each class.

    `classes` is int64 (N,). A class with 2 images or more is in both; a single image is for training.
    """
    order = _order(len(classes), seed)
    grouped = order[np.argsort(classes[order], kind="stable")]
    ends = np.cumsum(np.unique(classes, return_counts=True)[1])
    is_val = np.zeros(len(classes), dtype=bool)
    for group in np.split(grouped, ends[:-1]):
        is_val[group[: _num_val(len(group), val_fraction)]] = True
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


def grouped_indices(
    groups: Sequence[str], classes: Indices | None, val_fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Return indices for training and for validation, with all images of a group on one side.

    With `classes`, int64 (N,), the fraction is the same in each class; a group counts for the class of most of its
    images, and in a tie for the smaller class. If every group has a single image, the result is that of
    `stratified_indices` or `split_indices`. With 2 groups or more, neither side is empty.
    """
    places: dict[str, int] = {}
    group_of = np.asarray([places.setdefault(group, len(places)) for group in groups], dtype=np.int64)
    if len(places) == len(groups):
        if classes is None:
            return split_indices(len(groups), val_fraction, seed)
        return stratified_indices(classes, val_fraction, seed)
    kinds = np.zeros(len(groups), dtype=np.int64) if classes is None else classes
    pairs, counts = np.unique(np.stack([group_of, kinds]), axis=1, return_counts=True)
    kind_of = np.zeros(len(places), dtype=np.int64)
    for place in np.lexsort((-pairs[1], counts)):  # the largest count comes last and stays
        kind_of[pairs[0, place]] = pairs[1, place]
    sizes = np.bincount(group_of)
    order = _order(len(places), seed)
    is_val = np.zeros(len(places), dtype=bool)
    room = 0.0  # images still wanted; each class makes up for the excess or deficit of those before it
    for kind in np.unique(kind_of):
        members = order[kind_of[order] == kind]
        room += float(sizes[members].sum()) * val_fraction
        for member in members[:-1]:  # one group of each class is for training
            if sizes[member] < 2 * room:  # with it, the number is closer to the fraction than without
                is_val[member] = True
                room -= float(sizes[member])
    if not is_val.any() and len(places) > 1:  # every group is too large: take the smallest
        is_val[order[np.argmin(sizes[order])]] = True
    return np.flatnonzero(~is_val[group_of]), np.flatnonzero(is_val[group_of])


def set_aside(
    images: ImageSource,
    targets: npt.NDArray[np.int64] | npt.NDArray[np.floating[Any]],
    names: tuple[str, ...],
    val_fraction: float,
    seed: int,
    skipped: tuple[str, ...] = (),
    groups: Sequence[str] | None = None,
) -> Splits:
    """Divide images without a validation split: stratified for classes, at random for other targets.

    `groups` names for each image its group, which must not be divided. Raises UserError if there are too few images or
    groups to set some aside.
    """
    if groups is not None:
        of_class = targets.astype(np.int64) if targets.ndim == 1 else None
        train, val = grouped_indices(groups, of_class, val_fraction, seed)
        if len(targets) > 1 and not len(val) and len(set(groups)) == 1:
            raise UserError(f"data: all {len(targets)} images are of one group, {groups[0]!r}: none can be set aside")
    elif targets.ndim == 1:
        train, val = stratified_indices(targets.astype(np.int64), val_fraction, seed)
    else:
        train, val = split_indices(len(targets), val_fraction, seed)
    if not len(val):
        raise UserError(
            f"data: {plural(len(targets), 'image', spec='')} in {plural(len(names), 'class', 'classes', spec='')} "
            f"{'is' if len(targets) == 1 else 'are'} too few to set some aside for validation; "
            "at least one class needs 2 images"
            if targets.ndim == 1
            else f"data: {plural(len(targets), 'image is', 'images are', spec='')} too few to set some "
            "aside for validation; at least 2 are needed"
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
    # numpy promises the same stream of a bit generator in every version, but not that of shuffle() (NEP 19).
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable").astype(np.int64)
