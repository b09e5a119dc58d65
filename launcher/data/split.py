"""A seeded part of the training images set aside for validation: the same on every process and machine."""

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


def grouped_indices(
    groups: Sequence[str], classes: Indices | None, val_fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """The same fraction (of each class, int64 (N,), where there are any), with all images of a group on one side.

    A group counts for the class of most of its images, the smaller of two. Where no two images are of one group this is
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
    room = 0.0  # images still wanted; what a class has too many or too few of, the next one makes good
    for kind in np.unique(kind_of):
        members = order[kind_of[order] == kind]
        room += float(sizes[members].sum()) * val_fraction
        for member in members[:-1]:  # one of each class trains
            if sizes[member] < 2 * room:  # then closer to the share with it than without
                is_val[member] = True
                room -= float(sizes[member])
    if not is_val.any() and len(places) > 1:  # every group is larger than the share: the smallest of all
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
    """Splits of images that came without a validation split: stratified for classes, plain for other targets.

    `groups` names for each image the group that must not be divided. Raises UserError where there are too few images
    for that.
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
    # numpy promises the stream of a bit generator to be the same in every version, that of shuffle() not (NEP 19).
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable").astype(np.int64)
