"""Transforms from RGB pixels to the input of a backbone: the evaluation transform, and augmentations for training.

Pixels stay at 8 bits until their batch is on the device, where one function normalises the whole batch. Images are
resized by torch's own kernel for 8 bits, which takes two fifths of Pillow's time (0.29 against 0.71 ms for a crop of
280x250 to 224x224) and is as exact: a bicubic crop deviates from exact arithmetic by 0.28 levels on average, Pillow's
by 0.29.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import PIL.Image
from pydantic import Field

from launcher.recipe.part import part
from launcher.recipe.protocols import Preprocessing

if TYPE_CHECKING:
    import torch


VIEWS_VERSION = 1
"""Version of the views of evaluation and augmentations. Raise it when the same pixels give another view: stored
features then have another name and are computed again."""


@dataclasses.dataclass(frozen=True)
class Normalise:
    """Normalisation of uint8 (N, 3, S, S) to float32 on the same device, with the same layout in memory.

    The result is equal, bit for bit and on every device, to torchvision's `Normalize` of an image divided by 255. The
    object goes with each batch from the process that loads it.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        import torch

        # They are tensors on the device because CUDA divides by a plain number as a product with its reciprocal, which
        # rounds differently.
        levels, mean, std = _statistics(self.mean, self.std, images.device)
        rows = images.permute(0, 2, 3, 1)
        if images.device.type != "cpu" or not rows.is_contiguous():
            return images.to(torch.float32).div_(levels).sub_(mean).div_(std)
        # With channels last, torch's loops would run over three values at a time: that takes 9.5 ms for 32 images at
        # 224 px on two threads; with rows of 672 values it takes 1.7 ms.
        width = rows.shape[2]
        mean, std = (values.flatten().repeat(width) for values in (mean, std))
        flat = rows.reshape(-1, 3 * width).to(torch.float32).div_(levels).sub_(mean).div_(std)
        return flat.view(rows.shape).permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class PixelSteps:
    """Steps on pixels, uint8 (3, height, width) to uint8 (3, S, S), and the normalisation that batches get later.

    A call with an image does both at once, like any transform. The object is picklable.
    """

    steps: tuple[Callable[[Any], Any], ...]
    normalise: Normalise

    def __call__(self, image: PIL.Image.Image) -> torch.Tensor:
        return self.normalise(self.pixels(pixels_of(image))[None])[0]

    def pixels(self, pixels: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Apply all steps, or those from `start` on, but not the normalisation."""
        for step in self.steps[start:]:
            pixels = step(pixels)
        return pixels


def draws_from_torch_alone(transform: object) -> bool:
    """Return whether all random numbers of a transform are known to come from torch's global generator."""
    if type(transform) is not PixelSteps:
        return False
    functions = [step.func if isinstance(step, functools.partial) else step for step in transform.steps]
    modules = [str(getattr(function, "__module__", "")).partition(".")[0] for function in functions]
    return all(module in ("launcher", "torchvision") for module in modules)


def pixels_of(image: PIL.Image.Image) -> torch.Tensor:
    """Return an RGB image as a tensor, uint8 (3, height, width), channels last in memory."""
    import torch

    return torch.from_numpy(np.array(image.convert("RGB") if image.mode != "RGB" else image)).permute(2, 0, 1)


SPARE = 2
"""Least ratio, along each side, of the pixels of a crop to those of its result when a JPEG is decoded at a smaller
size. On photographs the results then deviate from those of the same crop at full size by 0.4 of 256 levels (99 % of
pixels by at most 3), and with a ratio of 1 by 1.1 levels. The crop moves by up to half a pixel of the smaller image,
which is a quarter of a pixel of the result."""


@dataclasses.dataclass(frozen=True)
class Window:
    """A rectangle within an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def may_be_reduced_by(self, side: int) -> int:
        """Return the largest of 1, 2, 4 and 8 by which its sides can be divided and keep SPARE * `side` pixels."""
        return next((by for by in (8, 4, 2) if min(self.height, self.width) >= SPARE * by * side), 1)

    def reduced(self, by: int, height: int, width: int) -> Window:
        """Return the same window in the image of `height` x `width` pixels whose sides have been divided by `by`."""
        if by == 1:
            return self
        high, wide = round(self.height / by), round(self.width / by)
        top, left = min(round(self.top / by), height - high), min(round(self.left / by), width - wide)
        return Window(top, left, high, wide)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """A resized crop of random area and aspect ratio, like torchvision's RandomResizedCrop."""

    preprocessing: Preprocessing
    min_scale: float

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.cut(pixels, self.window(*pixels.shape[1:]))

    def window(self, height: int, width: int) -> Window:
        """Draw a window for an image of this size."""
        import torch
        from torchvision.transforms import RandomResizedCrop

        image = torch.empty(3, height, width, device="meta")  # only its size is used
        return Window(*RandomResizedCrop.get_params(image, [self.min_scale, 1.0], [3 / 4, 4 / 3]))

    def cut(self, pixels: torch.Tensor, window: Window) -> torch.Tensor:
        """Return the pixels in a window, resized to the backbone's size."""
        side = self.preprocessing.image_size
        rows = slice(window.top, window.top + window.height)
        columns = slice(window.left, window.left + window.width)
        return _resized(pixels[:, rows, columns], [side, side], self.preprocessing)


@part
class Augment:
    """The augmentation of training images.

    "light": a random crop (area from `min_scale` of the image to all of it, aspect ratio 3/4 to 4/3) resized to the
    backbone's size, and a horizontal flip half of the time. "trivial": the same, then one random operation of random
    strength (TrivialAugment, https://arxiv.org/abs/2103.10158). "randaugment": the same as "light", then two random
    operations of strength 9 of 31 (RandAugment, https://arxiv.org/abs/1909.13719). "none": the evaluation transform;
    `min_scale` and `flip` do not apply.
    """

    preset: Literal["light", "trivial", "randaugment", "none"] = "light"
    min_scale: float = Field(default=0.35, gt=0, le=1)
    """Smallest share of the image's area that a crop shows. ImageNet training uses 0.08; small data sets need more."""
    flip: bool = True
    """Horizontal flip half of the time. Turn it off where left and right differ: digits, text, road signs."""
    random_erasing: float = Field(default=0.0, ge=0, le=1)
    """Probability that a rectangle is painted over with the mean colour, to the nearest of 256 levels
    (https://arxiv.org/abs/1708.04896)."""
    mixup_alpha: float | None = Field(default=None, gt=0)
    """Alpha of MixUp, which blends pairs of images and targets with a share drawn from Beta(alpha, alpha)
    (https://arxiv.org/abs/1710.09412)."""
    cutmix_alpha: float | None = Field(default=None, gt=0)
    """Alpha of CutMix, which pastes a rectangle of one image into another, with a share drawn likewise
    (https://arxiv.org/abs/1905.04899). If both are set, each batch gets one of the two."""

    def build(self, preprocessing: Preprocessing) -> PixelSteps:
        """Build the transform of an image, which draws from torch's global generator alone.

        MixUp and CutMix act on batches and are not included.
        """
        from torchvision.transforms import v2

        steps: list[Callable[[Any], Any]] = []
        if self.preset == "none":
            steps.append(functools.partial(_centre, preprocessing))
        else:
            steps.append(RandomCrop(preprocessing, self.min_scale))
            if self.flip:
                steps.append(v2.RandomHorizontalFlip())
            if self.preset != "light":
                kind = v2.TrivialAugmentWide if self.preset == "trivial" else v2.RandAugment
                # The operations on Pillow's images differ from those on tensors, and are faster.
                steps += [_as_image, kind(interpolation=_interpolation(preprocessing)), pixels_of]
        if self.random_erasing:
            colour = [float(round(255 * mean)) for mean in preprocessing.mean]
            steps.append(v2.RandomErasing(p=self.random_erasing, value=colour))
        return PixelSteps(tuple(steps), Normalise(preprocessing.mean, preprocessing.std))

    def short_side(self, preprocessing: Preprocessing) -> int:
        """Return the length of the shorter side, in pixels, that a smaller copy of an image must keep.

        With it, neither a crop of average area nor the centre crop is enlarged.
        """
        if self.preset == "none":
            return preprocessing.resize_size
        mean_area = (self.min_scale + 1) / 2
        return max(preprocessing.resize_size, round(preprocessing.image_size / math.sqrt(mean_area)))


def evaluation(preprocessing: Preprocessing) -> PixelSteps:
    """Return the evaluation transform: it resizes the shorter side, crops the centre, and draws nothing.

    Its results are within one of 256 levels of those that torchvision's `weights.transforms()` computes with Pillow (on
    average 0.002 on photographs; with bicubic interpolation within two levels, and 0.004). Without a change of size
    they are equal bit for bit.
    """
    steps = (functools.partial(_centre, preprocessing),)
    return PixelSteps(steps, Normalise(preprocessing.mean, preprocessing.std))


def shrunk(pixels: torch.Tensor, short_side: int, preprocessing: Preprocessing) -> torch.Tensor:
    """Resize the shorter side of an image's pixels to `short_side`, like the evaluation transform."""
    return _resized(pixels, [short_side], preprocessing)


def _centre(preprocessing: Preprocessing, pixels: torch.Tensor) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    resized = shrunk(pixels, preprocessing.resize_size, preprocessing)
    cropped: torch.Tensor = functional.center_crop(resized, [preprocessing.image_size])
    return cropped


def _resized(pixels: torch.Tensor, size: list[int], preprocessing: Preprocessing) -> torch.Tensor:
    import torch
    from torchvision.transforms.v2 import functional

    # The kernel takes channels-last pixels without a copy, and is slower on a window of a larger image.
    pixels = pixels[None].contiguous(memory_format=torch.channels_last)[0]
    resized: torch.Tensor = functional.resize(pixels, size, _interpolation(preprocessing), antialias=True)
    return resized


def _as_image(pixels: torch.Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


@functools.lru_cache(maxsize=8)
def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    levels = torch.tensor(255.0, device=device)
    mean_, std_ = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
    return levels, mean_, std_


def _interpolation(preprocessing: Preprocessing) -> Any:
    from torchvision.transforms import InterpolationMode

    # Pillow's nearest is torch's nearest-exact.
    name = preprocessing.interpolation
    return InterpolationMode.NEAREST_EXACT if name == "nearest" else InterpolationMode(name)
