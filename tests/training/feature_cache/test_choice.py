"""Where features are kept with cache="auto": by what was measured."""

from __future__ import annotations

import dataclasses

import pytest

from launcher.training.feature_cache.choice import Estimate, Store, choose

# 10,000 photographs through a ResNet-50 on a GPU's node: 8 kB each.
PHOTOS = Estimate(
    passes=10,
    images=10_000,
    row_bytes=8192,
    seconds_per_image=5e-3,
    read_bytes_per_second=5e8,
    free_disk_bytes=10**12,
    free_memory_bytes=10**10,
)
# Maps of 14x14 in the middle of it, of a million images: 800 GB, for which the disk is no faster than the network.
MAPS = dataclasses.replace(PHOTOS, images=10**6, row_bytes=802_816, seconds_per_image=1e-3)


@pytest.mark.parametrize(
    ("estimate", "has_disk", "store"),
    [
        (PHOTOS, True, "disk"),
        (dataclasses.replace(PHOTOS, passes=1), True, "disk"),  # the next run will want them
        (dataclasses.replace(PHOTOS, images=100), True, "memory"),  # half a second of work
        (dataclasses.replace(PHOTOS, images=100, passes=1), True, "none"),
        (PHOTOS, False, "memory"),
        (dataclasses.replace(PHOTOS, free_disk_bytes=10**8), True, "memory"),
        (dataclasses.replace(PHOTOS, free_disk_bytes=10**8, free_memory_bytes=10**8), True, "none"),
        (dataclasses.replace(PHOTOS, free_memory_bytes=10**8), True, "disk"),
        (MAPS, True, "none"),
        (dataclasses.replace(MAPS, free_disk_bytes=10**13), True, "none"),  # 1.6 ms to read, 1 ms to compute
        (dataclasses.replace(MAPS, free_disk_bytes=10**13, read_bytes_per_second=3e9), True, "disk"),
        (dataclasses.replace(PHOTOS, read_bytes_per_second=1e6), True, "memory"),
    ],
)
def test_what_is_chosen(estimate: Estimate, has_disk: bool, store: Store) -> None:
    chosen, why = choose(estimate, num_processes=1, has_disk=has_disk)
    assert chosen == store, why
    assert why


def test_many_processes_compute_sooner() -> None:
    """What eight of them compute in a second each is not worth a place on the disk."""
    few = dataclasses.replace(PHOTOS, images=1600)  # 8 seconds of one
    assert choose(few, num_processes=1, has_disk=True)[0] == "disk"
    assert choose(few, num_processes=8, has_disk=True)[0] == "memory"


def test_numbers() -> None:
    assert PHOTOS.bytes == 81_920_000
    assert PHOTOS.seconds_to_compute == pytest.approx(50)
    assert PHOTOS.times_faster == pytest.approx(5e-3 / (8192 / 5e8))
