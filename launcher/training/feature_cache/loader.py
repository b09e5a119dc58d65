"""Batches of boundary tensors: read from rows, or computed from images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from launcher.compat import end_workers
from launcher.data.target_precision import on_device
from launcher.training.feature_cache.rows import Layout
from launcher.training.images import Batch


class Rows(Protocol):
    """Rows by index, in memory or in shards on disk."""

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows of the images `indices` (n,), in their order, as uint8 (n, row_bytes)."""
        ...


@dataclasses.dataclass(frozen=True)
class FeatureBatch:
    """Samples of one process and one micro-step, as the tail takes them."""

    features: tuple[torch.Tensor, ...]
    """Boundary tensors, (n, ...) each."""
    targets: torch.Tensor
    """Targets, as in Split."""
    indices: torch.Tensor
    """Indices of the samples in the split, int64 (n,)."""

    def to(self, device: torch.device) -> FeatureBatch:
        """Return the batch on `device`."""
        features = tuple(tensor.to(device, non_blocking=True) for tensor in self.features)
        return FeatureBatch(features, on_device(self.targets, device), self.indices)


class FeatureLoader:
    """Loader of stored features in the order of `keys`; one batch is read ahead.

    `keys` gives batches of (epoch, index); view epoch % len(views) is read. It is iterated anew each time, and decides
    then where it begins.
    """

    def __init__(
        self,
        keys: Iterable[Sequence[tuple[int, int]]],
        views: Sequence[Rows],
        layout: Layout,
        targets: np.ndarray[Any, np.dtype[Any]],
        *,
        pin_memory: bool,
    ) -> None:
        self._keys, self._views, self._layout, self._targets = keys, views, layout, targets
        self._pin_memory = pin_memory

    def of(self, keys: Iterable[Sequence[tuple[int, int]]]) -> FeatureLoader:
        """Return a loader of the same features by other keys."""
        return FeatureLoader(keys, self._views, self._layout, self._targets, pin_memory=self._pin_memory)

    def __iter__(self) -> Iterator[FeatureBatch]:
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead = None
            for keys in self._keys:
                following = reader.submit(self._read, keys)
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            if ahead is not None:
                yield ahead.result()

    def _read(self, keys: Sequence[tuple[int, int]]) -> FeatureBatch:
        indices = torch.tensor([index for _, index in keys])
        view = keys[0][0] % len(self._views)  # all keys of a batch belong to one epoch
        features = self._layout.tensors(self._views[view].rows(indices))
        targets = torch.as_tensor(self._targets[indices.numpy()])
        if self._pin_memory:
            features = tuple(tensor.pin_memory() for tensor in features)
        return FeatureBatch(features, targets, indices)


@dataclasses.dataclass
class Source:
    """Origin of a phase's batches."""

    fixed_views: int | None
    train: Iterable[Batch | FeatureBatch]
    """Batches of an epoch, from where the run's keys begin."""
    val: Iterable[Batch | FeatureBatch]
    """Batches of this process's share of the validation split."""
    own_loader: DataLoader[Batch] | None = None

    def close(self) -> None:
        """End the workers of the phase's own loader, if there is one."""
        if self.own_loader is not None:
            end_workers(self.own_loader)
