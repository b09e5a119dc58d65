"""What may differ between a run and the recipe that continues it."""

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
"""Fields that decide what is kept, told or waited for, and not what is learned."""


@dataclasses.dataclass(frozen=True)
class Differences:
    """Lines such as "optim.lr: 0.001 there, 0.0003 now"."""

    accepted: tuple[str, ...] = ()
    """Of fields that change no weights."""
    data: tuple[str, ...] = ()
    """Of the data part: the same data may be named otherwise, which their content tells."""
    cache: tuple[str, ...] = ()
    """Of `cache`, which may be another store for the same images."""
    refused: tuple[str, ...] = ()


def differences_from(there: Mapping[str, Any], recipe: Recipe) -> Differences:
    """Sort the differences between the JSON of the recipe that a run began with and the one that is to continue it."""
    kinds: dict[str, list[str]] = {"accepted": [], "data": [], "cache": [], "refused": []}
    for line in differences(there, recipe):
        field = line.partition(":")[0]
        top = field.partition(".")[0]
        kind = "accepted" if top in CHANGES_NO_WEIGHTS else top if top in ("data", "cache") else "refused"
        kinds[kind].append(line)
    return Differences(**{kind: tuple(lines) for kind, lines in kinds.items()})


def same_images(there: Mapping[str, Any], recipe: Recipe, lr_scales_of_phases: Iterable[Mapping[str, float]]) -> bool:
    """Return whether every phase trains on the same views of the images with the `cache` of the run as with this one;
    whether and where something is stored changes no bit. `lr_scales_of_phases` holds scales by parameter name."""
    before = dataclasses.replace(recipe, cache=there["cache"])
    return all(fixed_views(before, scales) == fixed_views(recipe, scales) for scales in lr_scales_of_phases)
