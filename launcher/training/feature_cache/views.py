"""Training images of a phase: drawn anew in each epoch, or some views that stay and can be stored.

The recipe alone decides, so that it is the same on every machine; storing the features changes no result.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from launcher.errors import UserError
from launcher.recipe.recipe import Recipe
from launcher.recipe.transforms import Augment
from launcher.text import plural
from launcher.training.data_order import Key
from launcher.training.images import EvaluationImages, Sample, TrainingImages, Transform
from launcher.training.mixup import Mixing


def fixed_views(recipe: Recipe, lr_scales: Mapping[str, float]) -> int | None:
    """Return how many views of each image a phase cycles through, or None if it draws fresh ones in each epoch.

    The number 0 stands for the evaluation view.

    With cache="auto" a phase keeps its views if nothing of the backbone trains, if the recipe draws nothing, or if it
    sets cache_views. With "memory" and "disk" every phase that freezes something does. With CutMix, none does.
    """
    if recipe.cache == "off" or all(scale > 0 for scale in lr_scales.values()):
        return None
    if Mixing.of(recipe.augment).cutmix_alpha is not None:
        return None
    if draws_nothing(recipe):
        return 0
    backbone_trains = any(scale > 0 for name, scale in lr_scales.items() if name.startswith("backbone."))
    asked = recipe.cache != "auto" or recipe.cache_views is not None
    return (recipe.cache_views or 0) if asked or not backbone_trains else None


def draws_nothing(recipe: Recipe) -> bool:
    """Return whether a training image looks the same in each epoch, and as in evaluation.

    Nothing is known of an augmentation of the user's own, even if it inherits `preset`.
    """
    augment = recipe.augment
    return type(augment) is Augment and augment.preset == "none" and not augment.random_erasing


def in_words(recipe: Recipe, views: int | None) -> str | None:
    """Describe how fixed images limit a phase's augmentation, or return None if they do not."""
    if views is None or draws_nothing(recipe):
        return None
    if views == 0:
        return "augment is not applied here: evaluation view (else: cache_views=4, cache=off)"
    return f"{plural(views, 'augmented view')} of each image in turn (cache=off: fresh ones)"


def check_cache(recipe: Recipe) -> None:
    """Check the cache fields of a recipe against each other.

    Raises:
        UserError: Fields contradict each other.
    """
    problems = []
    if recipe.cache_views is not None and recipe.cache == "off":
        problems.append(f"cache_views={recipe.cache_views}: nothing is stored with cache='off'; leave one of them out")
    if recipe.cache_views is not None and draws_nothing(recipe):
        problems.append(
            f"cache_views={recipe.cache_views}: augment.preset='none' gives the same picture each time; leave "
            "cache_views out, or choose another preset"
        )
    asked = recipe.cache in ("memory", "disk") or recipe.cache_views is not None
    if asked and Mixing.of(recipe.augment).cutmix_alpha is not None:
        field = f"cache={recipe.cache!r}" if recipe.cache_views is None else f"cache_views={recipe.cache_views}"
        problems.append(
            f"{field}: CutMix pastes pictures, which stored features no longer are; use augment.mixup_alpha, "
            "which can mix features, or cache='off'"
        )
    if problems:
        raise UserError(*problems)


class FixedViews(torch.utils.data.Dataset[Sample]):
    """Images by (epoch, index), in the view of that epoch: view v is what epoch v would draw."""

    def __init__(self, training: TrainingImages, evaluation: Transform, views: int) -> None:
        self.split = training.split
        self._training = training
        self._evaluation = EvaluationImages(training.split, evaluation)
        self._views = views
        self.transform = training.transform if views else evaluation

    def __getitem__(self, key: Key) -> Sample:
        epoch, index = key
        return self._training[epoch % self._views, index] if self._views else self._evaluation[index]
