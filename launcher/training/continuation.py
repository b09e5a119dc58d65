"""The differences allowed between a run and the recipe that continues it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.recipe.recipe import Recipe
from launcher.recipe.serialization import differences
from launcher.training.feature_cache.views import fixed_views

CHANGES_NO_WEIGHTS = frozenset(
    {
        "checkpoint_every_minutes",
        "checkpoint_every_steps",
        "final_weights",
        "hang_limit_seconds",
        "max_skipped_steps",
        "on_nonfinite",
        "trackers",
    }
)
"""Fields that affect what is kept, reported or waited for, but not what is learned."""


@dataclasses.dataclass(frozen=True)
class Differences:
    """Differences as lines such as "optim.lr: 0.001 there, 0.0003 now"."""

    accepted: tuple[str, ...] = ()
    """Differences in fields that change no weights."""
    data: tuple[str, ...] = ()
    """Differences in the data part, which may name the same data differently; a comparison of the content decides."""
    cache: tuple[str, ...] = ()
    """Differences in `cache`, which may name another store for the same images."""
    refused: tuple[str, ...] = ()


def differences_from(there: Mapping[str, Any], recipe: Recipe) -> Differences:
    """Classify the differences between the recipe that a run began with, as JSON, and the recipe that continues it."""
    kinds: dict[str, list[str]] = {"accepted": [], "data": [], "cache": [], "refused": []}
    for line in differences(there, recipe):
        field = line.partition(":")[0]
        top = field.partition(".")[0]
        kind = "accepted" if top in CHANGES_NO_WEIGHTS else top if top in ("data", "cache") else "refused"
        kinds[kind].append(line)
    return Differences(**{kind: tuple(lines) for kind, lines in kinds.items()})


def same_images(there: Mapping[str, Any], recipe: Recipe, lr_scales_of_phases: Iterable[Mapping[str, float]]) -> bool:
    """Return whether every phase trains on the same views of the images with the `cache` of the run as with this one.

    Whether and where something is stored does not change a bit. `lr_scales_of_phases` holds the scales of each phase by
    parameter name.
    """
    before = dataclasses.replace(recipe, cache=there["cache"])
    return all(fixed_views(before, scales) == fixed_views(recipe, scales) for scales in lr_scales_of_phases)
