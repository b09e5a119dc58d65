"""Transforms: evaluation equal to torchvision's own, augmentation from torch's generator alone."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pydantic
import pytest
import torch
import torchvision
from PIL import Image

from launcher.recipe.protocols import Augmentation, Preprocessing
from launcher.recipe.transforms import Augment, evaluation

SMALL = Preprocessing(image_size=32, resize_size=36)
PRESETS = ("light", "trivial", "randaugment")


def photo(width: int = 317, height: int = 211) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    "weights",
    [
        torchvision.models.ResNet50_Weights.IMAGENET1K_V2,
        torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1,  # bicubic, 384
        torchvision.models.Inception_V3_Weights.IMAGENET1K_V1,
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(317, 211), (200, 640), (90, 90)], ids=str)
def test_evaluation_equals_the_weights_own_transform(
    weights: torchvision.models.WeightsEnum, size: tuple[int, int]
) -> None:
    theirs = weights.transforms()
    preprocessing = Preprocessing(
        image_size=theirs.crop_size[0],
        resize_size=theirs.resize_size[0],
        mean=tuple(theirs.mean),
        std=tuple(theirs.std),
        interpolation=theirs.interpolation.value,
    )
    image = photo(*size)
    assert torch.equal(evaluation(preprocessing)(image), theirs(image))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_augmentation_gives_normalised_tensors(preset: str, interpolation: str) -> None:
    augment = Augment(preset=preset, random_erasing=0.5)  # type: ignore[arg-type]
    assert isinstance(augment, Augmentation)
    transform = augment.build(Preprocessing(image_size=32, resize_size=36, interpolation=interpolation))  # type: ignore[arg-type]
    transform = pickle.loads(pickle.dumps(transform))  # noqa: S301 - our own bytes: workers get it so
    for seed in range(20):
        torch.manual_seed(seed)
        tensor = transform(photo())
        assert tensor.shape == (3, 32, 32)
        assert tensor.dtype == torch.float32
        assert -2.2 < tensor.min() < tensor.max() < 2.7


@pytest.mark.parametrize("preset", PRESETS)
def test_all_randomness_is_torchs(preset: str) -> None:
    transform = Augment(preset=preset, random_erasing=0.5).build(SMALL)  # type: ignore[arg-type]
    image = photo()

    def draw(seed: int, other_seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        random.seed(other_seed)
        np.random.seed(other_seed)
        return transform(image)

    for seed in range(20):
        before = draw(seed, other_seed=1)
        state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
        assert torch.equal(before, draw(seed, other_seed=2))
        draw(seed, other_seed=1)
        assert random.getstate() == state
        assert np.random.get_state()[1].tolist() == numpy_state
    assert len({draw(seed, 0).numpy().tobytes() for seed in range(20)}) == 20


def test_no_augmentation_is_the_evaluation_transform() -> None:
    assert torch.equal(Augment(preset="none").build(SMALL)(photo()), evaluation(SMALL)(photo()))


def test_flip_can_be_turned_off() -> None:
    """With crops of the whole image, what is left is the mirror image: half of the time, or never."""
    square = photo(64, 64)
    left = [
        {
            Augment(min_scale=1.0, flip=flip).build(SMALL)(square).numpy().tobytes()
            for _ in range(30)
            if torch.manual_seed(_)
        }
        for flip in (True, False)
    ]
    assert [len(seen) for seen in left] == [2, 1]


def test_erasing_paints_with_the_mean_colour() -> None:
    torch.manual_seed(0)
    tensor = Augment(preset="none", random_erasing=1.0).build(SMALL)(photo())
    plain = evaluation(SMALL)(photo())
    changed = tensor != plain
    assert 0.02 < changed.float().mean() < 0.4
    assert (tensor[changed] == 0).all()


@pytest.mark.parametrize(
    "fields",
    [{"preset": "strong"}, {"min_scale": 0.0}, {"random_erasing": 1.5}, {"mixup_alpha": 0.0}, {"cutmix": 1.0}],
    ids=str,
)
def test_wrong_fields_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Augment(**fields)  # type: ignore[arg-type]
