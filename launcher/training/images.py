"""Data sets and loaders of one process, which turn a split into batches of tensors."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import functools
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from launcher.data.decoding import Decoder, to_rgb
from launcher.data.target_precision import on_device
from launcher.errors import UserError
from launcher.recipe.protocols import PixelTransform, Split
from launcher.recipe.transforms import PixelSteps, draws_from_torch_alone
from launcher.text import one_line, plural
from launcher.training.data_order import Key, TrainingKeys, seed_for
from launcher.training.failures import ImageError, line_of, of_surroundings
from launcher.training.watchdog import STACKS_SIGNAL

_T = TypeVar("_T")
Transform = Callable[[PIL.Image.Image], torch.Tensor]
Sample: TypeAlias = tuple[torch.Tensor, Any, int]
"""An image, its target and its index in the split."""
SECONDS_UNTIL_A_DEATH_IS_KNOWN = 5.0
"""Time given to the system to report the death of a data worker whose connection has ended."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Samples of one process and one micro-step."""

    images: torch.Tensor
    """float32 (n, 3, S, S), normalised; or uint8, to which `normalise` is still to be applied."""
    targets: torch.Tensor
    """The targets, as in Split."""
    indices: torch.Tensor
    """int64 (n,): the indices of the samples in the split."""
    normalise: Callable[[torch.Tensor], torch.Tensor] | None = None

    def to(self, device: torch.device, *, normalised: bool = True) -> Batch:
        """Return the batch on a device, with its images in channels last and, if `normalised`, normalised."""
        images = self.images.to(device, non_blocking=True, memory_format=torch.channels_last)
        normalise = self.normalise
        if normalise and normalised:
            images, normalise = normalise(images), None
        return Batch(images, on_device(self.targets, device), self.indices, normalise)

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory, so that copies to the device do not block; DataLoader calls this."""
        return dataclasses.replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())


@dataclasses.dataclass(frozen=True)
class Failure:
    """The problems with an image that could not be loaded, in place of its sample or its batch.

    If a worker raised an exception instead, torch would put the worker's traceback into its message.
    """

    problems: tuple[str, ...]


class TrainingImages(Dataset[Sample]):
    """Augmented images by (epoch, index); the random draws depend only on (seed, epoch, index)."""

    def __init__(self, split: Split, transform: Transform, seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed
        self._decoder = Decoder(split.images)
        self._draws_from_torch_alone = draws_from_torch_alone(transform)

    def __getitem__(self, key: Key) -> Sample:
        if self._draws_from_torch_alone:
            return self._sample(key)
        # A user's own transform may draw from Python's and numpy's generators, too. Seeding these takes 0.3 ms.
        with seeded_for_sample(seed_for("sample", self.seed, *key)):
            return self._sample(key)

    def _sample(self, key: Key) -> Sample:
        epoch, index = key
        # torch.manual_seed formats a stack trace for CUDA in each call, which took two fifths of the time of an image
        # of 16 px.
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(seed_for("sample", self.seed, epoch, index))
        try:
            return _image(self._decoder, index, self.transform), self.split.targets[index], index
        finally:
            generator.set_state(before)


@contextlib.contextmanager
def seeded_for_sample(seed: int) -> Iterator[None]:
    """Seed the global generators of `random` and `numpy.random` within this context, and restore them afterwards."""
    before, numpy_before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)


class EvaluationImages(Dataset[Sample]):
    """Images by index, after the evaluation transform."""

    def __init__(self, split: Split, transform: Transform) -> None:
        self.split, self.transform = split, transform
        self._decoder = Decoder(split.images)

    def __getitem__(self, index: int) -> Sample:
        return _image(self._decoder, index, self.transform), self.split.targets[index], index

    def __len__(self) -> int:
        return len(self.split)


def _image(decoder: Decoder, index: int, transform: Transform) -> torch.Tensor:
    if isinstance(transform, PixelSteps):
        return decoder.transformed(index, transform)
    if isinstance(transform, PixelTransform):
        return transform.pixels(decoder.pixels(index))
    return transform(to_rgb(decoder.images.read(index)))


def collate(samples: list[Sample], transform: Transform) -> Batch:
    """Return a batch of samples from a data set that applies `transform`."""
    images, targets, indices = zip(*samples, strict=True)
    # With channels last, each image is copied as a whole.
    stacked = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    normalise = transform.normalise if isinstance(transform, PixelTransform) else None
    return Batch(stacked, torch.as_tensor(np.stack(targets)), torch.tensor(indices), normalise)


class _Guarded(Dataset[Any]):
    """A data set that returns a Failure for each sample that cannot be loaded."""

    def __init__(self, dataset: Dataset[Any], split: Split) -> None:
        self._dataset, self._split = dataset, split

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._dataset[key]
        except Exception as error:
            index = key[1] if isinstance(key, tuple) else key
            return _failure(error, f"data: {one_line(self._split.images.name(index))}")


def _guarded_collate(samples: list[Any], transform: Transform) -> Batch | Failure:
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
    try:
        batch = collate(samples, transform)
        if get_worker_info() is not None:
            # This is done here and not in the thread that hands tensors over, where errors are lost with the batch.
            for tensor in (batch.images, batch.targets, batch.indices):
                tensor.share_memory_()
        return batch
    except Exception as error:
        return _failure(error, "data: a batch")


def _failure(error: Exception, what: str) -> Failure:
    if isinstance(error, UserError):
        return Failure(error.problems)
    if isinstance(error, MemoryError):
        return Failure((f"{what}: memory ran out; use fewer --workers, or give the run more memory",))
    line = of_surroundings(error)
    if line is None and isinstance(error, OSError):
        line = f"{what}: cannot be read ({error.strerror or error})"
    return Failure((line or f"{what}: {line_of(error)}",))


class ImageLoader(DataLoader[Batch]):
    """A loader that raises ImageError, a UserError, if workers cannot be started or a batch cannot be loaded."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            batches = super().__iter__()
        except OSError as error:
            raise ImageError(
                f"{plural(self.num_workers, 'data worker')} could not be started ({error.strerror or error}); "
                "use fewer --workers, or raise the limit (ulimit -n, ulimit -u, the memory)"
            ) from error
        return _raising(batches)


def _raising(batches: Iterator[Any]) -> Iterator[Batch]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            # A worker was killed while it handed over a tensor. Torch's handler of SIGCHLD, which may come later than
            # the end of the connection, interrupts this sleep by an error that names the worker and the signal.
            time.sleep(SECONDS_UNTIL_A_DEATH_IS_KNOWN)
            raise ImageError(
                f"a data worker broke off while it handed over a batch ({type(error).__name__}), as happens where "
                "memory runs out; give the run more memory, or use fewer --workers"
            ) from error
        if isinstance(batch, Failure):
            raise ImageError(*batch.problems)
        yield batch


def _start_worker(_: int) -> None:
    # Schedulers and terminals signal the whole process group, but the run decides when to stop and end its workers.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if STACKS_SIGNAL:
        faulthandler.register(STACKS_SIGNAL, file=2)
    torch.set_num_threads(1)
    sys.excepthook = _report_from_worker


def _report_from_worker(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Show uncaught exceptions of a data worker, except for lost connections.

    The worker's other errors go to the training process. If that is interrupted while it fetches a batch, the thread
    that hands tensors over would show the traceback of a lost connection.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def training_loader(
    split: Split, transform: Transform, keys: TrainingKeys, *, seed: int, num_workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Return a loader of this process's micro-batches in the order of `keys`.

    Call `keys.start` before each iteration.
    """
    images = TrainingImages(split, transform, seed)
    return loader_of(images, transform, keys, num_workers=num_workers, pin_memory=pin_memory)


def evaluation_loader(
    split: Split,
    transform: Transform,
    *,
    batch_size: int,
    process_index: int,
    num_processes: int,
    num_workers: int,
    pin_memory: bool,
) -> DataLoader[Batch]:
    """Return a loader of this process's share of a split, each sample once.

    The share consists of the samples process_index, process_index + num_processes, ...
    """
    mine = list(range(process_index, len(split), num_processes))
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    images = EvaluationImages(split, transform)
    return loader_of(images, transform, batches, num_workers=num_workers, pin_memory=pin_memory)


class Images(Protocol):
    """A data set of a split's samples by some key: an index, or an epoch and an index."""

    split: Split

    def __getitem__(self, key: Any) -> Sample: ...


def loader_of(
    dataset: Images,
    transform: Transform,
    batches: Any,
    *,
    num_workers: int,
    pin_memory: bool,
    keep_workers: bool = True,
) -> DataLoader[Batch]:
    """Return a loader of batches from a data set that applies `transform`; `batches` yields the keys of each batch."""
    return ImageLoader(
        _Guarded(cast(Dataset[Any], dataset), dataset.split),
        batch_sampler=batches,
        collate_fn=functools.partial(_guarded_collate, transform=transform),
        num_workers=num_workers,
        persistent_workers=num_workers > 0 and keep_workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )


def timed(loader: Iterable[_T], waited: list[float]) -> Iterator[_T]:
    """Yield the loader's batches, and append the seconds spent waiting for each to `waited`."""
    iterator = iter(loader)
    while True:
        begin = time.perf_counter()
        batch = next(iterator, None)
        waited.append(time.perf_counter() - begin)
        if batch is None:
            return
        yield batch
