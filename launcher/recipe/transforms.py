"""From RGB images to what a backbone sees: the evaluation transform, and augmentations for training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from launcher.recipe.part import part
from launcher.recipe.protocols import Preprocessing

if TYPE_CHECKING:
    import PIL.Image
    import torch


@part
class Augment:
    """How training images are varied.

    "light": a random crop (area from `min_scale` of the image to all of it, aspect ratio 3/4 to 4/3) resized to the
    backbone's size, and a mirror image half of the time. "trivial": these, then one random operation of random
    strength (TrivialAugment, https://arxiv.org/abs/2103.10158). "randaugment": these, then two random operations of
    strength 9 of 31 (RandAugment, https://arxiv.org/abs/1909.13719). "none": the evaluation transform; `min_scale` and
    `flip` do not apply.
    """

    preset: Literal["light", "trivial", "randaugment", "none"] = "light"
    min_scale: float = Field(default=0.35, gt=0, le=1)
    """Smallest share of the image's area that a crop shows. ImageNet training uses 0.08; a few images need more."""
    flip: bool = True
    """Mirror images half of the time. Turn it off where left and right differ: digits, text, road signs."""
    random_erasing: float = Field(default=0.0, ge=0, le=1)
    """Probability that a rectangle is painted over with the mean colour (https://arxiv.org/abs/1708.04896)."""
    mixup_alpha: float | None = Field(default=None, gt=0)
    """Blend pairs of images and targets, with a Beta(alpha, alpha) share (https://arxiv.org/abs/1710.09412)."""
    cutmix_alpha: float | None = Field(default=None, gt=0)
    """Paste a rectangle of one image into another, likewise (https://arxiv.org/abs/1905.04899). With both, each batch
    gets one of the two."""

    def build(self, preprocessing: Preprocessing) -> Callable[[PIL.Image.Image], torch.Tensor]:
        """A picklable transform: RGB image -> normalised float32 (3, image_size, image_size).

        Draws from torch's global generator alone. MixUp and CutMix act on batches and are not part of it.
        """
        from torchvision.transforms import v2

        steps: list[Any] = []
        interpolation = _interpolation(preprocessing)
        if self.preset == "none":
            steps.extend(_resized(preprocessing))
        else:
            steps.append(
                v2.RandomResizedCrop(
                    preprocessing.image_size, scale=(self.min_scale, 1.0), interpolation=interpolation, antialias=True
                )
            )
            if self.flip:
                steps.append(v2.RandomHorizontalFlip())
            if self.preset == "trivial":
                steps.append(v2.TrivialAugmentWide(interpolation=interpolation))
            elif self.preset == "randaugment":
                steps.append(v2.RandAugment(interpolation=interpolation))
        steps.extend(_normalised(preprocessing))
        if self.random_erasing:
            steps.append(v2.RandomErasing(p=self.random_erasing))  # after normalising, where 0 is the mean colour
        compose: Callable[[PIL.Image.Image], torch.Tensor] = v2.Compose(steps)
        return compose


def evaluation(preprocessing: Preprocessing) -> Callable[[PIL.Image.Image], torch.Tensor]:
    """A picklable transform: RGB image -> normalised float32 (3, image_size, image_size), the same every time.

    The shorter side is resized, the centre cropped: equal to what torchvision's `weights.transforms()` computes.
    """
    from torchvision.transforms import v2

    compose: Callable[[PIL.Image.Image], torch.Tensor] = v2.Compose(
        [*_resized(preprocessing), *_normalised(preprocessing)]
    )
    return compose


def _resized(preprocessing: Preprocessing) -> list[Any]:
    from torchvision.transforms import v2

    return [
        v2.Resize(preprocessing.resize_size, interpolation=_interpolation(preprocessing), antialias=True),
        v2.CenterCrop(preprocessing.image_size),
    ]


def _normalised(preprocessing: Preprocessing) -> list[Any]:
    import torch
    from torchvision.transforms import ConvertImageDtype, v2

    return [
        v2.PILToTensor(),
        # Divides by 255, as the weights' own transforms do; v2 multiplies by 1 / 255, which rounds otherwise.
        ConvertImageDtype(torch.float32),
        v2.Normalize(mean=list(preprocessing.mean), std=list(preprocessing.std)),
    ]


def _interpolation(preprocessing: Preprocessing) -> Any:
    from torchvision.transforms import InterpolationMode

    return InterpolationMode(preprocessing.interpolation)
