"""Origin of a phase's batches: images, or stored features in place of them."""

from __future__ import annotations

import dataclasses

from launcher.recipe.transforms import evaluation
from launcher.training.feature_cache.frozen_part import Frozen
from launcher.training.feature_cache.loader import FeatureLoader, Rows, Source
from launcher.training.feature_cache.views import FixedViews
from launcher.training.images import TrainingImages, loader_of
from launcher.training.preflight import ResolvedPhase
from launcher.training.run import Run


def images_of(run: Run, resolved: ResolvedPhase) -> Source:
    """Return batches of images: fresh ones, or the phase's fixed views, computed whenever they are asked for."""
    if resolved.fixed_views is None:
        return Source(None, run.train_loader, run.val_loader)
    views = views_of(run, resolved.fixed_views)
    loader = loader_of(
        views, views.transform, run.keys, num_workers=run.num_workers, pin_memory=run.accelerator.device.type == "cuda"
    )
    return Source(resolved.fixed_views, loader, run.val_loader, loader)


def views_of(run: Run, views: int) -> FixedViews:
    """Return the training images in `views` fixed views, or in the evaluation view if `views` is 0."""
    prepared, recipe = run.prepared, run.recipe
    augmented = TrainingImages(prepared.splits.train, recipe.augment.build(prepared.preprocessing), recipe.seed)
    return FixedViews(augmented, evaluation(prepared.preprocessing), views)


def stored(run: Run, frozen: Frozen, source: Source, train: tuple[Rows, ...], val: Rows) -> Source:
    """Return batches of stored features in place of batches of images; without `train`, for validation only."""
    pin_memory = run.accelerator.device.type == "cuda"
    accelerator, splits = run.accelerator, run.prepared.splits
    size = run.val_batch_size
    share = range(accelerator.process_index, len(splits.val), accelerator.num_processes)
    shares = [[(0, index) for index in share[begin : begin + size]] for begin in range(0, len(share), size)]
    val_batches = FeatureLoader(shares, (val,), frozen.layout, splits.val.targets, pin_memory=pin_memory)
    if not train:
        return dataclasses.replace(source, val=val_batches)
    source.close()
    train_batches = FeatureLoader(run.keys, train, frozen.layout, splits.train.targets, pin_memory=pin_memory)
    return Source(source.fixed_views, train_batches, val_batches)
