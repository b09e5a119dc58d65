"""Protocols of the parts.

Any class that implements a protocol is a part: there is no base class and no registry. What a part may have besides is
in `launcher.recipe.abilities`.
"""

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
"""Kind of targets: one class per image, several labels per image (0 or 1 each), or numbers."""


@part
class Preprocessing:
    """Format of the images that a backbone sees; augmented training images have the same size, mean and std."""

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
        """Build the module that maps images (N, 3, H, W) to features (N, num_features).

        The module has an attribute `num_features: int`, and may have those that `NamesClassifier`,
        `DescribesClassifierBias` and `DescribesClassifierKind` declare.
        """
        ...

    def preprocessing(self) -> Preprocessing:
        """Return the format of its images, without building the network."""
        ...


@runtime_checkable
class Head(Protocol):
    """The new layers on top of a backbone's features."""

    def build(self, backbone: nn.Module, num_outputs: int) -> nn.Module:
        """Build the module that maps features (N, backbone.num_features) to outputs (N, num_outputs)."""
        ...


class ImageSource(Protocol):
    """Images by index.

    A source must be picklable, for DataLoader workers, and hold its paths in arrays, not in lists of objects.
    """

    def __len__(self) -> int: ...

    def read(self, index: int) -> PIL.Image.Image:
        """Read an image as it is stored, in any mode; raise OSError or ValueError if it is broken."""
        ...

    def name(self, index: int) -> str:
        """Return the name by which a person finds an image: its path, or the data set's name and the row."""
        ...


@dataclasses.dataclass(frozen=True)
class Split:
    """Images with their targets.

    `targets` is int64 (N,) for target kind "class", float32 (N, num_labels) of 0 and 1 for "labels", and float64
    (N, num_targets) for "values" (for which a user's own part may give float32).
    """

    images: ImageSource
    targets: np.ndarray[Any, np.dtype[Any]]

    def __len__(self) -> int:
        return len(self.targets)


@dataclasses.dataclass(frozen=True)
class Splits:
    """The result of a data part: training and validation images, and the names of their targets."""

    train: Split
    val: Split
    names: tuple[str, ...]
    """Class names ("class"), label names ("labels") or target names ("values"), in the order of the outputs."""
    test: Split | None = dataclasses.field(default=None, kw_only=True)
    """Images that are only for `evaluate --split test`, at the very end. The package's own parts find theirs only then,
    so training does not read them."""
    skipped: tuple[str, ...] = ()
    """One line for each omission: broken images (on_bad_image="skip"), and files and folders that are no images."""
    notes: tuple[str, ...] = ()
    """One line for each thing that a person should know about how the data was read."""


@runtime_checkable
class Data(Protocol):
    """A data set: where its images and targets are, and how it is split."""

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        """Read the index of the data (names and targets, not pixels), which is the same on every process.

        Raises UserError for a missing folder, an unknown class, targets that are not of `target_kind`, ...
        """
        ...


class BuiltTask(Protocol):
    """A task that knows the training targets."""

    num_outputs: int
    monitor: str
    """Metric that decides which weights are best."""
    monitor_mode: Literal["max", "min"]

    def encode(self, targets: torch.Tensor) -> torch.Tensor:
        """Convert targets to float (N, num_outputs), for mixing images (MixUp, CutMix)."""
        ...

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss per sample, (N,).

        `targets` are as in `Split` or as `encode` returns them. Those of kind "values" are float32, because many of
        torch's losses take nothing else, unless the task part has `exact_targets` (`TakesExactTargets`).
        """
        ...

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        """Return the metrics over all samples, in the user's units, with "loss" (plain targets, no smoothing)."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the JSON that `final/` needs for reading the outputs without this package."""
        ...


@runtime_checkable
class Task(Protocol):
    """The kind of the targets, and the loss and metrics of the outputs."""

    @property
    def target_kind(self) -> TargetKind: ...

    def build(self, splits: Splits) -> BuiltTask: ...


@runtime_checkable
class Augmentation(Protocol):
    """Random changes to the training images."""

    def build(self, preprocessing: Preprocessing) -> Callable[[PIL.Image.Image], torch.Tensor]:
        """Build a picklable transform from an RGB image to a normalised float32 (3, image_size, image_size).

        All randomness must come from the global generators of torch, `random` and `numpy.random`, which are seeded for
        each (seed, epoch, sample). The transform need not be a `PixelTransform`; if it is, it is used as one.
        """
        ...


@runtime_checkable
class PixelTransform(Protocol):
    """A transform whose images stay at 8 bits, a quarter of float32, until their batch is on the device."""

    def pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Transform RGB pixels, uint8 (3, height, width), to uint8 (3, image_size, image_size)."""
        ...

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise a batch of these on its device, uint8 (N, 3, S, S), to float32."""
        ...


@runtime_checkable
class Optimizer(Protocol):
    """The settings of an optimizer."""

    def base_lr(self, batch_size: int) -> float:
        """Return the learning rate of parameters with lr_scale 1, for this global batch size."""
        ...

    def build(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Build the optimizer of parameter groups as torch takes them.

        Groups without weight decay have "weight_decay" 0.0. Their extra keys have to be kept.
        """
        ...


@runtime_checkable
class Schedule(Protocol):
    """The shape of the learning rate over a phase."""

    def scale(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the factor on the learning rate for optimizer step `step` (0-based) of a phase of `steps` steps.

        This must be a pure function: without state, a resumed run and any number of processes see the same rates.
        """
        ...
