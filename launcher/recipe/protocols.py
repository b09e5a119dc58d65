"""What a part must be able to do, and what else it may be able to do.

Any class that does it is a part: there is no base class and no registry. What is optional stands beside the part that
it extends, and is looked for with `isinstance`: once, not for each image, as it takes 7 to 26 us on Python 3.11.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
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

        It carries `num_features: int`, and may carry what `NamesClassifier` and its neighbours declare.
        """
        ...

    def preprocessing(self) -> Preprocessing:
        """How its images must look. Must not build the network."""
        ...


@runtime_checkable
class ChecksSettings(Protocol):
    """A backbone that raises UserError, before it is built, for settings from which it cannot be."""

    def check(self) -> None: ...


@runtime_checkable
class DescribesPlainNetwork(Protocol):
    """A backbone whose network a library builds: its `library`, `name` and `kwargs`, for `final/model.json`."""

    def plain(self) -> dict[str, Any]: ...


@runtime_checkable
class HasNetworkName(Protocol):
    """A backbone that is one network of several, and says which."""

    name: str


@runtime_checkable
class HasImageSize(Protocol):
    """A backbone that can be built for several image sizes, and says for which it is; None stands for its own."""

    image_size: int | None


@runtime_checkable
class HasPretrainedWeights(Protocol):
    """A backbone that says which weights it starts from; None stands for random ones."""

    weights: str | None


@runtime_checkable
class DescribesWeightsSource(Protocol):
    """A backbone that says, for a line of the plan, where its weights come from."""

    def weights_source(self) -> str: ...


@runtime_checkable
class NamesClassifier(Protocol):
    """A backbone's module that knows its removed classifier's dotted name; `final/` then has the original's names."""

    classifier_name: str | None


@runtime_checkable
class DescribesClassifierBias(Protocol):
    """A backbone's module that says whether the removed classifier had a bias; `heads.Linear` then is like it."""

    classifier_has_bias: bool


@runtime_checkable
class DescribesClassifierKind(Protocol):
    """A backbone's module that says whether the removed classifier was a 1x1 convolution and not a linear layer."""

    classifier_is_conv: bool


@runtime_checkable
class Head(Protocol):
    def build(self, backbone: nn.Module, num_outputs: int) -> nn.Module:
        """A module that maps features (N, backbone.num_features) to outputs (N, num_outputs)."""
        ...


@runtime_checkable
class HasInitialisation(Protocol):
    """A head that says how its weights start; "ridge" stands for ridge regression on the features."""

    init: str


@runtime_checkable
class HasDropout(Protocol):
    """A head with dropout, of this probability."""

    dropout: float


class ImageSource(Protocol):
    """Images by index. Picklable (DataLoader workers), and holds its paths in arrays, not in lists of objects."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> PIL.Image.Image:
        """The image as stored, in any mode. Raises OSError or ValueError where it is broken."""
        ...

    def name(self, index: int) -> str:
        """What a person would look for: the path, or the data set's name and row."""
        ...


@runtime_checkable
class HoldsEncodedImages(Protocol):
    """An image source that has the bytes that `read` decodes, or None; JPEGs are decoded faster with extra `fast`."""

    def encoded(self, index: int) -> bytes | None: ...


@runtime_checkable
class HoldsImageFiles(Protocol):
    """An image source that reads images from files of their own, whose hashes are remembered; None: from elsewhere."""

    def file(self, index: int) -> Path | None: ...


@runtime_checkable
class HoldsPixels(Protocol):
    """An image source that has the RGB pixels themselves, uint8 (height, width, 3), such as a prepared copy."""

    def stored_pixels(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]: ...


@runtime_checkable
class IsPreparedCopy(Protocol):
    """An image source that is a prepared copy of another, with an id that changes with anything that is stored."""

    copy_id: str | None


@runtime_checkable
class KnowsSourceDigests(Protocol):
    """An image source that knows the hashes of the images it was made of, uint8 (N, 16), without reading them."""

    source_digests: np.ndarray[Any, np.dtype[np.uint8]] | None


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


@runtime_checkable
class HandlesBadImages(Protocol):
    """A data part that says what is done with images that cannot be decoded: "stop" the run, or "skip" them."""

    on_bad_image: str


@runtime_checkable
class HasImageColumn(Protocol):
    """A data part that reads images from a named column of a table; None: from the only one that can hold them."""

    image_column: str | None


@runtime_checkable
class HasLabelColumn(Protocol):
    """A data part that reads targets from named columns of a table; None: from the only one that can hold them."""

    label_column: str | tuple[str, ...] | None


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
        many of torch's losses take nothing else, unless the task part has `exact_targets` (`TakesExactTargets`)."""
        ...

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
        """Metrics over all samples, in the user's units; includes "loss" (plain targets, no smoothing)."""
        ...

    def describe(self) -> dict[str, Any]:
        """What `final/` needs to read the outputs without this package (JSON)."""
        ...


@runtime_checkable
class ReportsUndefined(Protocol):
    """A built task that says which metrics these targets leave undefined, and why: a class has no image, say."""

    def undefined(self, targets: torch.Tensor) -> dict[str, str]: ...


@runtime_checkable
class PredictsValues(Protocol):
    """A built task that turns outputs, on the CPU, into numbers in the user's units, float64 (N, num_targets)."""

    def values(self, outputs: torch.Tensor) -> torch.Tensor: ...


@runtime_checkable
class NormalisesTargets(Protocol):
    """A built task of target kind "values" whose outputs aim at normalised targets, (N, num_outputs)."""

    def normalised(self, targets: torch.Tensor) -> torch.Tensor: ...


@runtime_checkable
class Task(Protocol):
    @property
    def target_kind(self) -> TargetKind: ...

    def build(self, splits: Splits) -> BuiltTask: ...


@runtime_checkable
class TakesExactTargets(Protocol):
    """A task that says whether targets of kind "values" are to stay float64."""

    exact_targets: bool


@runtime_checkable
class WeighsClasses(Protocol):
    """A task that can give the classes weights in its loss; None: all count the same."""

    class_weights: object


@runtime_checkable
class Augmentation(Protocol):
    def build(self, preprocessing: Preprocessing) -> Callable[[PIL.Image.Image], torch.Tensor]:
        """A picklable transform from an RGB image to a normalised float32 (3, image_size, image_size).

        All randomness must come from the global generators of torch, `random` and `numpy.random`: they are seeded for
        each (seed, epoch, sample). A transform that is a `PixelTransform` as well is used as one; it need not be.
        """
        ...


@runtime_checkable
class HasMixUp(Protocol):
    """An augmentation that can blend pairs of images; None: it does not."""

    mixup_alpha: float | None


@runtime_checkable
class HasCutMix(Protocol):
    """An augmentation that can paste a rectangle of one image into another; None: it does not."""

    cutmix_alpha: float | None


@runtime_checkable
class HasPreset(Protocol):
    """An augmentation that goes by a name; "none" stands for the evaluation transform."""

    preset: str


@runtime_checkable
class KnowsShortSide(Protocol):
    """An augmentation that says which shorter side, in pixels, a prepared copy must keep; else as in evaluation."""

    def short_side(self, preprocessing: Preprocessing) -> int: ...


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
class ScalesWithBatchSize(Protocol):
    """An optimizer whose learning rate is meant for this batch size and scaled to the recipe's; None: as it is."""

    lr_batch_size: int | None


@runtime_checkable
class Schedule(Protocol):
    def scale(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Factor on the learning rate for optimizer step `step` (0-based) of a phase of `steps` steps.

        A pure function: no state, so a resumed run and any number of processes see the same rates.
        """
        ...
