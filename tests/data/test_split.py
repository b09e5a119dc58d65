"""Splits that are set aside: stratified, seeded, complete."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.split import grouped_indices, split_indices, stratified_indices

FRACTIONS = st.floats(0.01, 0.99)
SEEDS = st.integers(0, 2**40)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), FRACTIONS, SEEDS)
def test_stratified(classes: list[int], val_fraction: float, seed: int) -> None:
    targets = np.asarray(classes, dtype=np.int64)
    train, val = stratified_indices(targets, val_fraction, seed)
    assert sorted([*train, *val]) == list(range(len(classes)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    for index in set(classes):
        count, num_val = classes.count(index), int((targets[val] == index).sum())
        if count == 1:
            assert num_val == 0
        else:
            assert 1 <= num_val <= count - 1
            assert abs(num_val - count * val_fraction) <= 1
    again = stratified_indices(targets, val_fraction, seed)
    assert np.array_equal(train, again[0])
    assert np.array_equal(val, again[1])


@given(st.integers(0, 200), FRACTIONS, SEEDS)
def test_plain(count: int, val_fraction: float, seed: int) -> None:
    train, val = split_indices(count, val_fraction, seed)
    assert sorted([*train, *val]) == list(range(count))
    if count >= 2:
        assert 1 <= len(val) <= count - 1
        assert abs(len(val) - count * val_fraction) <= 1


def test_the_order_is_written_in_stone() -> None:
    """A run that is continued with another numpy must find the images where they were."""
    assert split_indices(20, 0.25, seed=0)[1].tolist() == [2, 3, 11, 13, 15]


def test_seeds_differ() -> None:
    chosen = {tuple(split_indices(30, 0.2, seed)[1]) for seed in range(20)}
    assert len(chosen) == 20


def test_every_image_has_its_chance() -> None:
    """Over 200 seeds, each of 100 images is chosen about 40 times (20 %; standard deviation 5.7)."""
    classes = np.repeat([0, 1], 50)
    counts = np.zeros(100)
    for seed in range(200):
        counts[stratified_indices(classes, 0.2, seed)[1]] += 1
    assert counts.min() > 15
    assert counts.max() < 70


@pytest.mark.slow
@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), FRACTIONS, SEEDS)
def test_without_shared_groups_the_split_is_what_it_was(classes: list[int], val_fraction: float, seed: int) -> None:
    alone = [str(index) for index in range(len(classes))]
    targets = np.asarray(classes, dtype=np.int64)
    for of_class, plain in (
        (targets, stratified_indices(targets, val_fraction, seed)),
        (None, split_indices(len(classes), val_fraction, seed)),
    ):
        for ours, theirs in zip(grouped_indices(alone, of_class, val_fraction, seed), plain, strict=True):
            assert ours.tolist() == theirs.tolist()


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=2, max_size=60), FRACTIONS, SEEDS)
def test_groups_are_never_divided(rows: list[tuple[int, int]], val_fraction: float, seed: int) -> None:
    groups, classes = [str(group) for group, _ in rows], np.asarray([kind for _, kind in rows])
    train, val = grouped_indices(groups, classes, val_fraction, seed)
    assert sorted([*train, *val]) == list(range(len(rows)))
    assert not {groups[index] for index in train} & {groups[index] for index in val}
    if len(set(groups)) > 1 and len(set(groups)) < len(groups):
        assert len(train)
        assert len(val)


def test_splits_of_earlier_versions_stay() -> None:
    assert stratified_indices(np.asarray([0, 1] * 10), 0.2, 0)[1].tolist() == [2, 3, 11, 18]
    assert split_indices(20, 0.2, 0)[1].tolist() == [2, 3, 11, 13]
