"""What a part must be able to do. Any class that does it is a part: there is no base class and no registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from launcher.recipe.part import part

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    import torch
    from torch import nn

TargetKind: TypeAlias = Literal["class", "labels", "values"]
"""How targets are read: one class per image, several labels per image (0 or 1 each), or numbers."""


@part
class Preprocessing:
    """How the images that a backbone sees must look; augmented training images keep size, mean and std of it."""

    image_size: int
    """Side of the square that the backbone sees, in pixels."""
    resize_size: int
    """Length of the shorter side before the centre crop, in pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"


@runtime_checkable
class Backbone(Protocol):
    """A feature extractor without its classifier."""

    def build(self) -> nn.Module:
        """A module that maps images (N, 3, H, W) to features (N, num_features).

        It carries `num_features: int`. It may carry `classifier_name: str` (the dotted name that the removed
        classifier had in the original network; `final/` then uses the original network's names), and
        `classifier_has_bias: bool`.
        """
        ...

    def preprocessing(self) -> Preprocessing:
        """How its images must look. Must not build the network."""
        ...


@runtime_checkable
class Head(Protocol):
    def build(self, backbone: nn.Module, num_outputs: int) -> nn.Module:
        """A module that maps features (N, backbone.num_features) to outputs (N, num_outputs)."""
        ...


class ImageSource(Protocol):
    """Images by index. Picklable (DataLoader workers), and holds its paths in arrays, not in lists of objects."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> PIL.Image.Image:
        """The image as stored, in any mode. Raises OSError or ValueError where it is broken."""
        ...

    def name(self, index: int) -> str:
        """What a person would look for: the path, or the data set's name and row."""
        ...

    # It may also have `encoded(index) -> bytes | None`: the content of the image file that `read` decodes. JPEGs are
    # then decoded by a faster way to the same pixels, where the extra `fast` is installed.


@dataclasses.dataclass(frozen=True)
class Split:
    """Images with their targets.

    `targets` is int64 (N,) for target kind "class", float32 (N, num_labels) of 0 and 1 for "labels",
    float64 (N, num_targets) for "values". (A part of the user's own may give float32.)
    """

    images: ImageSource
    targets: np.ndarray[Any, np.dtype[Any]]

    def __len__(self) -> int:
        return len(self.targets)


@dataclasses.dataclass(frozen=True)
class Splits:
    """What a data part builds: training and validation images, and what their targets mean."""

    train: Split
    val: Split
    names: tuple[str, ...]
    """Class names ("class"), label names ("labels") or target names ("values"), in the order of the outputs."""
    test: Split | None = dataclasses.field(default=None, kw_only=True)
    """Images for the very end, which `evaluate --split test` alone looks at. The package's own parts find theirs then,
    so that training does not read them."""
    skipped: tuple[str, ...] = ()
    """What was left out, one line each: broken images (on_bad_image="skip"), files and folders that are no images."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the data was read, one line each."""


@runtime_checkable
class Data(Protocol):
    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        """Read the index of the data (names and targets, not pixels). The same on every process.

        Raises UserError for a missing folder, an unknown class, targets that are not of `target_kind`, ...
        """
        ...


class BuiltTask(Protocol):
    """A task that knows the training targets."""

    num_outputs: int
    monitor: str
    """The metric that decides what is best."""
    monitor_mode: Literal["max", "min"]

    def encode(self, targets: torch.Tensor) -> torch.Tensor:
        """Targets as float (N, num_outputs), for mixing images (MixUp, CutMix)."""
        ...

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss per sample, (N,). `targets` are as in `Split`, or as from `encode`; of target kind "values" float32, for
        many of torch's losses take nothing else, unless the task part has `exact_targets`."""
        ...

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        """Metrics over all samples, in the user's units; includes "loss" (plain targets, no smoothing)."""
        ...

    def describe(self) -> dict[str, Any]:
        """What `final/` needs to read the outputs without this package (JSON)."""
        ...


@runtime_checkable
class ReportsUndefined(Protocol):
    """A built task that says which of its metrics cannot be had, and why: of a class without an image, for instance."""

    def undefined(self, targets: torch.Tensor) -> dict[str, str]:
        """Return the metrics that are not defined for these targets, and what the set of images lacks or is."""
        ...


@runtime_checkable
class Task(Protocol):
    @property
    def target_kind(self) -> TargetKind: ...

    def build(self, splits: Splits) -> BuiltTask: ...

    # It may also have `exact_targets = True`: targets of kind "values" then stay float64.


@runtime_checkable
class Augmentation(Protocol):
    def build(self, preprocessing: Preprocessing) -> Callable[[PIL.Image.Image], torch.Tensor]:
        """A picklable transform from an RGB image to a normalised float32 (3, image_size, image_size).

        All randomness must come from the global generators of torch, `random` and `numpy.random`: they are seeded for
        each (seed, epoch, sample). A transform that is a `PixelTransform` as well is used as one; it need not be.
        """
        ...

    # It may also have `short_side(preprocessing) -> int`: the shorter side, in pixels, that a prepared copy of the
    # images must keep. Else that is what the evaluation transform needs.


@runtime_checkable
class PixelTransform(Protocol):
    """A transform whose pictures stay 8 bits, a quarter of float32, until their batch is on the device."""

    def pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """RGB pixels, uint8 (3, height, width), to uint8 (3, image_size, image_size)."""
        ...

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """A batch of these on its device, uint8 (N, 3, S, S), to normalised float32."""
        ...


@runtime_checkable
class Optimizer(Protocol):
    def base_lr(self, batch_size: int) -> float:
        """Learning rate of parameters with lr_scale 1, for this global batch size."""
        ...

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """`groups` are parameter groups as torch takes them, with "weight_decay" 0.0 where there must be none, and
        extra keys that have to be kept."""
        ...


@runtime_checkable
class Schedule(Protocol):
    def scale(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Factor on the learning rate for optimizer step `step` (0-based) of a phase of `steps` steps.

        A pure function: no state, so a resumed run and any number of processes see the same rates.
        """
        ...
