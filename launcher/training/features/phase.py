"""What a phase does with its frozen prefix: where its outputs come from, in training and in evaluation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from launcher.recipe.transforms import evaluation
from launcher.training.features.batches import FeatureBatch, FeatureLoader, Rows
from launcher.training.features.cut import Tail, Uncut, cut
from launcher.training.features.identity import prefix_identity
from launcher.training.features.prefix import Prefix, dtype_of, engine
from launcher.training.features.records import Layout
from launcher.training.features.views import FixedViews, draws_nothing
from launcher.training.frozen import fingerprints
from launcher.training.images import Batch, TrainingImages, end_workers, loader_of

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from launcher.recipe.recipe import Recipe
    from launcher.training.model import TransferModel
    from launcher.training.preparation import ResolvedPhase
    from launcher.training.state import Run


@dataclasses.dataclass
class Frozen:
    """A phase's network in two parts. The first is computed here, the second is what trains."""

    prefix: Prefix
    layout: Layout
    tail: Tail
    """Parameters under the names of the whole network, behind "model."."""
    identity: Callable[[], str]
    """Of all that the prefix's outputs depend on, apart from the images. Hashes the weights."""
    is_copy: bool
    """The prefix holds weights of its own: folded, or of another precision."""
    rounds: bool
    """What crosses is rounded to the precision of storage, whether it is stored or not."""

    def of(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """What crosses for pictures on the device, normalised or not yet."""
        crossing = self.prefix(batch.images, batch.normalise)
        return self.layout.rounded(crossing) if self.rounds else crossing

    def fingerprints(self) -> dict[str, str]:
        """Of weights that are not the network's own, by names of their own."""
        if not self.is_copy:
            return {}
        return {f"(frozen prefix) {name}": value for name, value in fingerprints(self.prefix.module).items()}


def frozen_part(
    accelerator: Accelerator, model: TransferModel, resolved: ResolvedPhase, recipe: Recipe, image_size: int
) -> Frozen | str | None:
    """The phase's network cut in two; None where nothing is frozen; or why it cannot be cut.

    `model` is on its device, and its parameters are frozen as the phase's rules say.
    """
    found = cut(model, resolved.phase.norm_statistics, image_size)
    if isinstance(found, Uncut):
        return found.reason
    precision = str(accelerator.mixed_precision)
    fixed = resolved.fixed_views is not None
    # What is stored is computed once, and should be what it is without: there a few percent are not worth a rounding.
    fold = not fixed and not draws_nothing(recipe)
    prefix, is_copy = engine(
        found, autocast=accelerator.autocast, precision=precision, fold=fold, image_size=image_size
    )
    given = prefix.dtypes(image_size)
    asked = recipe.cache_precision
    exact = torch.float32 if torch.float32 in given else given[0]
    layout = Layout(found.crossing, exact if asked is None else dtype_of(asked), given)
    computed = f"{precision}{' folded' if fold else ''}"
    identity = functools.partial(prefix_identity, found, layout, computed, accelerator.device.type)
    return Frozen(prefix, layout, found.tail, identity, is_copy, rounds=asked is not None and fixed)


@dataclasses.dataclass
class Source:
    """Where a phase's batches come from."""

    fixed_views: int | None
    train: Iterable[Batch | FeatureBatch]
    """An epoch's, from where the run's keys say."""
    val: Iterable[Batch | FeatureBatch]
    """This process's share of the validation split."""
    own_loader: DataLoader[Batch] | None = None

    def close(self) -> None:
        if self.own_loader is not None:
            end_workers(self.own_loader)


def pictures(run: Run, resolved: ResolvedPhase) -> Source:
    """Batches of pictures: fresh ones, or the phase's views, each to be computed whenever it is asked for."""
    if resolved.fixed_views is None:
        return Source(None, run.train_loader, run.val_loader)
    views = views_of(run, resolved.fixed_views)
    loader = loader_of(
        views, views.transform, run.keys, num_workers=run.num_workers, pin_memory=run.accelerator.device.type == "cuda"
    )
    return Source(resolved.fixed_views, loader, run.val_loader, loader)


def views_of(run: Run, views: int) -> FixedViews:
    prepared, recipe = run.prepared, run.recipe
    augmented = TrainingImages(prepared.splits.train, recipe.augment.build(prepared.preprocessing), recipe.seed)
    return FixedViews(augmented, evaluation(prepared.preprocessing), views)


def stored(run: Run, frozen: Frozen, source: Source, train: tuple[Rows, ...], val: Rows) -> Source:
    """Batches of stored features, in place of those of pictures."""
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
