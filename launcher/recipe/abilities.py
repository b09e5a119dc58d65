"""Optional abilities of parts: what a part, an image source or a built task may have besides its protocol.

Each is found by `isinstance`, so any class that has the member has the ability.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
from launcher.recipe.protocols import Preprocessing


@runtime_checkable
class ChecksSettings(Protocol):
    """A backbone that raises UserError, before it is built, for settings with which it cannot be built."""

    def check(self) -> None: ...


@runtime_checkable
class DescribesPlainNetwork(Protocol):
    """A backbone whose network a library builds; it gives `library`, `name` and `kwargs` for `final/model.json`."""

    def plain(self) -> dict[str, Any]: ...


@runtime_checkable
class HasNetworkName(Protocol):
    """A backbone that stands for one network of several, and names it."""

    name: str


@runtime_checkable
class HasImageSize(Protocol):
    """A backbone that can be built for several image sizes, with the chosen size; None stands for its own."""

    image_size: int | None


@runtime_checkable
class HasPretrainedWeights(Protocol):
    """A backbone that names the weights from which it starts; None stands for random ones."""

    weights: str | None


@runtime_checkable
class DescribesWeightsSource(Protocol):
    """A backbone that says where its weights come from, for a line of `plan`."""

    def weights_source(self) -> str: ...


@runtime_checkable
class NamesClassifier(Protocol):
    """A backbone's module that knows the dotted name of its removed classifier, which `final/` then has again."""

    classifier_name: str | None


@runtime_checkable
class DescribesClassifierBias(Protocol):
    """A backbone's module that says whether the removed classifier had a bias; `heads.Linear` then does the same."""

    classifier_has_bias: bool


@runtime_checkable
class DescribesClassifierKind(Protocol):
    """A backbone's module that says whether the removed classifier was a 1x1 convolution, not a linear layer."""

    classifier_is_conv: bool


@runtime_checkable
class HasInitialisation(Protocol):
    """A head that names its initialisation; "ridge" stands for ridge regression on the features."""

    init: str


@runtime_checkable
class HasDropout(Protocol):
    """A head with dropout of this probability."""

    dropout: float


@runtime_checkable
class HoldsEncodedImages(Protocol):
    """An image source that has the bytes that `read` decodes, or None.

    With them and the extra `fast`, JPEGs are decoded faster.
    """

    def encoded(self, index: int) -> bytes | None: ...


@runtime_checkable
class HoldsImageFiles(Protocol):
    """An image source that reads each image from a file of its own, whose hash is remembered; None: from elsewhere."""

    def file(self, index: int) -> Path | None: ...


@runtime_checkable
class HoldsPixels(Protocol):
    """An image source, such as a prepared copy, that stores RGB pixels, uint8 (height, width, 3)."""

    def stored_pixels(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]: ...


@runtime_checkable
class IsPreparedCopy(Protocol):
    """An image source that is a prepared copy of another, with an id that changes whenever its content changes."""

    copy_id: str | None


@runtime_checkable
class KnowsSourceDigests(Protocol):
    """An image source that knows, without reading them, the hashes of the images it was made of, uint8 (N, 16)."""

    source_digests: np.ndarray[Any, np.dtype[np.uint8]] | None


@runtime_checkable
class HandlesBadImages(Protocol):
    """A data part with a rule for images that cannot be decoded: "stop" the run, or "skip" them."""

    on_bad_image: str


@runtime_checkable
class HasImageColumn(Protocol):
    """A data part that reads images from a named column of a table; None: the only column that can hold them."""

    image_column: str | None


@runtime_checkable
class HasLabelColumn(Protocol):
    """A data part that reads targets from named columns of a table; None: the only column that can hold them."""

    label_column: str | tuple[str, ...] | None


@runtime_checkable
class ReportsUndefined(Protocol):
    """A built task that names the metrics that given targets leave undefined, and why: a class has no image, say."""

    def undefined(self, targets: torch.Tensor) -> dict[str, str]: ...


@runtime_checkable
class PredictsValues(Protocol):
    """A built task that converts outputs, on the CPU, to numbers in the user's units, float64 (N, num_targets)."""

    def values(self, outputs: torch.Tensor) -> torch.Tensor: ...


@runtime_checkable
class NormalisesTargets(Protocol):
    """A built task of target kind "values" whose outputs predict normalised targets, (N, num_outputs)."""

    def normalised(self, targets: torch.Tensor) -> torch.Tensor: ...


@runtime_checkable
class TakesExactTargets(Protocol):
    """A task that says whether targets of kind "values" stay float64."""

    exact_targets: bool


@runtime_checkable
class WeighsClasses(Protocol):
    """A task that can weight the classes in its loss; None: all count the same."""

    class_weights: object


@runtime_checkable
class HasMixUp(Protocol):
    """An augmentation that can blend pairs of images; None: no blending."""

    mixup_alpha: float | None


@runtime_checkable
class HasCutMix(Protocol):
    """An augmentation that can paste a rectangle of one image into another; None: no pasting."""

    cutmix_alpha: float | None


@runtime_checkable
class HasPreset(Protocol):
    """An augmentation with a name; "none" stands for the evaluation transform."""

    preset: str


@runtime_checkable
class KnowsShortSide(Protocol):
    """An augmentation that says which shorter side, in pixels, a prepared copy must keep.

    Without it, a copy keeps the shorter side that evaluation needs.
    """

    def short_side(self, preprocessing: Preprocessing) -> int: ...


@runtime_checkable
class ScalesWithBatchSize(Protocol):
    """An optimizer whose learning rate is meant for this batch size and scaled to the recipe's; None: not scaled."""

    lr_batch_size: int | None
