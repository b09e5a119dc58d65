"""Batches: 8 bits until they are on the device, whatever a user's own transform gives, and the same on any worker."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from launcher import transforms
from launcher.compat import end_workers
from launcher.data.decoding import to_rgb
from launcher.errors import UserError
from launcher.recipe.part import part
from launcher.recipe.protocols import Preprocessing, Split
from launcher.recipe.transforms import Augment, PixelSteps, evaluation
from launcher.training.batch_arithmetic import batching_for
from launcher.training.data_order import TrainingKeys, seed_for
from launcher.training.feature_cache import views
from launcher.training.images import Batch, evaluation_loader, training_loader
from runs import train

PREPROCESSING = Preprocessing(image_size=12, resize_size=14, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
CPU = torch.device("cpu")


def split(count: int = 21) -> Split:
    return Split(tiny.Stripes(count, 0), np.arange(count, dtype=np.int64) % 3)


@dataclasses.dataclass(frozen=True)
class Own:
    """A transform of a user's own, made of ours: floats, one channel brighter."""

    inner: PixelSteps

    def __call__(self, image: Any) -> torch.Tensor:
        return self.inner(image) + torch.tensor([0.5, 0.0, 0.0]).view(3, 1, 1)


def batches(transform: Any, num_workers: int) -> Iterator[Batch]:
    keys = TrainingKeys(21, batching_for(8, 1, None), 0, 7)
    loader = training_loader(split(), transform, keys, seed=7, num_workers=num_workers, pin_memory=False)
    try:
        keys.start(3, 0)
        yield from loader
    finally:
        end_workers(loader)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_batches_hold_bytes_until_they_are_on_the_device(num_workers: int) -> None:
    augment = Augment(preset="trivial", random_erasing=0.5).build(PREPROCESSING)
    seen = []
    for batch in batches(augment, num_workers):
        assert batch.images.dtype == torch.uint8
        there = batch.to(CPU)
        assert there.images.dtype == torch.float32
        assert there.images.is_contiguous(memory_format=torch.channels_last)
        for image, index in zip(there.images, there.indices.tolist(), strict=True):
            torch.manual_seed(seed_for("sample", 7, 3, index))
            # As the transform alone makes it of the image, in any process.
            assert torch.equal(image, augment(to_rgb(split().images.read(index))))
            seen.append(index)
        assert torch.equal(there.targets, there.indices % 3)
        # A batch that is there already stays as it is.
        assert there.to(CPU).images.data_ptr() == there.images.data_ptr()
    assert sorted(seen) == list(range(21))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_floats_of_a_users_own_transform_are_not_touched(num_workers: int) -> None:
    own = Own(Augment().build(PREPROCESSING))
    for batch in batches(own, num_workers):
        assert batch.images.dtype == torch.float32
        there = batch.to(CPU)
        assert there.images.is_contiguous(memory_format=torch.channels_last)
        for image, index in zip(there.images, there.indices.tolist(), strict=True):
            torch.manual_seed(seed_for("sample", 7, 3, index))
            assert torch.equal(image, own(to_rgb(split().images.read(index))))


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A transform of a user's own that draws from all global generators, as albumentations-like code does."""

    inner: PixelSteps

    def __call__(self, image: Any) -> torch.Tensor:
        shift = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
        return self.inner(image) + shift.view(3, 1, 1)


@pytest.mark.slow
def test_python_and_numpy_are_seeded_for_each_sample_and_put_back() -> None:
    """Whatever the number of workers, and whatever the process drew before."""
    pictures = []
    for num_workers, before in ((0, 1), (0, 2), (2, 3), (1, 4)):
        random.seed(before)
        np.random.seed(before)
        next_ones = random.random(), np.random.rand()
        random.seed(before)
        np.random.seed(before)
        found = [batch.images for batch in batches(Drawing(evaluation(PREPROCESSING)), num_workers)]
        pictures.append(torch.cat(found))
        assert (random.random(), np.random.rand()) == next_ones
    assert all(torch.equal(other, pictures[0]) for other in pictures[1:])
    shifts = (pictures[0] - pictures[0].roll(1, dims=0)).flatten(1)
    assert len(torch.unique(shifts[:, 0])) > 15, "each sample has numbers of its own"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnGenerator:
    """Draws from a generator that nobody seeds."""

    def build(self, preprocessing: Preprocessing) -> Any:
        generator, inner = np.random.default_rng(), evaluation(preprocessing)
        return lambda image: inner(image) + float(generator.uniform())


def test_a_generator_of_its_own_is_reported_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="augment: OwnGenerator gave two pictures for one seed"):
        train(dataclasses.replace(tiny.recipe, augment=OwnGenerator()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@part
class Brighter(transforms.Augment):
    """Inherits preset="none", and draws all the same."""

    preset: str = "none"  # type: ignore[assignment]

    def build(self, preprocessing: Preprocessing) -> PixelSteps:
        steps = super().build(preprocessing)
        return PixelSteps((*steps.steps, _brighter), steps.normalise)


def _brighter(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels + int(100 * random.random())).clamp(max=255)


@pytest.mark.slow
def test_an_augmentation_of_ones_own_is_not_taken_for_the_evaluation_view() -> None:
    """It inherits `preset`, which says nothing of what it does."""
    assert views.draws_nothing(dataclasses.replace(tiny.recipe, augment=transforms.Augment(preset="none")))
    assert not views.draws_nothing(dataclasses.replace(tiny.recipe, augment=Brighter()))
    for num_workers in (0, 1):
        first = [batch.images for batch in batches(Brighter().build(PREPROCESSING), num_workers)]
        assert torch.equal(torch.cat(first), torch.cat([b.images for b in batches(Brighter().build(PREPROCESSING), 0)]))


def test_evaluation_batches() -> None:
    transform = evaluation(PREPROCESSING)
    loader = evaluation_loader(
        split(), transform, batch_size=4, process_index=1, num_processes=2, num_workers=0, pin_memory=False
    )
    seen = []
    for batch in loader:
        assert batch.images.dtype == torch.uint8
        there = batch.to(CPU)
        for image, index in zip(there.images, there.indices.tolist(), strict=True):
            assert torch.equal(image, transform(to_rgb(split().images.read(index))))
            seen.append(index)
    assert seen == list(range(1, 21, 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrapped:
    """An augmentation of a user's own that gives floats, the very ones of ours."""

    def build(self, preprocessing: Preprocessing) -> Any:
        return transforms.Augment(random_erasing=0.3).build(preprocessing).__call__


@pytest.mark.slow
def test_bytes_and_floats_train_the_same_weights(tmp_path: Path) -> None:
    """Where the pictures are normalised changes no bit of what is learned."""
    train(dataclasses.replace(tiny.recipe, augment=transforms.Augment(random_erasing=0.3)), tmp_path / "bytes")
    train(dataclasses.replace(tiny.recipe, augment=Wrapped()), tmp_path / "floats")
    from safetensors.torch import load_file

    ours, theirs = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("bytes", "floats"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())
