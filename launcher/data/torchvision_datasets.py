"""Image classification data sets of torchvision."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from launcher.assets.bundle import Asset, OwnPath, assets_folder, fetch_command
from launcher.data.folder import PathText
from launcher.data.sources import ArrayImages, FileImages
from launcher.data.split import set_aside
from launcher.data.targets import refuse
from launcher.errors import UserError, did_you_mean
from launcher.files import expanded, file_lock
from launcher.recipe.part import part
from launcher.recipe.protocols import Split, Splits, TargetKind


class _Set(NamedTuple):
    """The arguments of a class of torchvision.datasets: `split="..."`, `train=True`, or neither (one piece)."""

    argument: Literal["split", "train", None]
    train: str = "train"
    val: str | None = None
    """Official validation split. A test split is never used for validation unless the recipe names it."""


SETS = {
    "CIFAR10": _Set("train"),
    "CIFAR100": _Set("train"),
    "Country211": _Set("split", val="valid"),
    "DTD": _Set("split", val="val"),
    "EuroSAT": _Set(None),
    "FGVCAircraft": _Set("split", val="val"),
    "FashionMNIST": _Set("train"),
    "Flowers102": _Set("split", val="val"),
    "Food101": _Set("split"),
    "GTSRB": _Set("split"),
    "Imagenette": _Set("split", val="val"),
    "KMNIST": _Set("train"),
    "MNIST": _Set("train"),
    "OxfordIIITPet": _Set("split", train="trainval"),
    "RenderedSST2": _Set("split", val="val"),
    "STL10": _Set("split"),
    "SUN397": _Set(None),
    "SVHN": _Set("split"),
    "StanfordCars": _Set("split"),
    "USPS": _Set("train"),
}

WITH_TEST = {
    *("Country211", "DTD", "FGVCAircraft", "Flowers102", "Food101", "GTSRB", "OxfordIIITPet", "RenderedSST2"),
    *("STL10", "SVHN", "StanfordCars"),
}
"""Data sets that take the argument `split` and have a test split."""


@part
class Torchvision:
    """A data set of `torchvision.datasets`, whose files lie below `root` (or are downloaded to it)."""

    name: str
    """Name of its class: "Flowers102", "OxfordIIITPet", "CIFAR10", ..."""
    root: PathText
    train_split: str | None = None
    """Training split; None: "train" ("trainval" for OxfordIIITPet)."""
    val_split: str | None = None
    """Validation split; None: the official one, else a fraction of each class of the training split, never "test". The
    name of the training split stands for a fraction of it, even if there is a validation split."""
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    download: bool = False
    on_bad_image: Literal["stop", "skip"] = "stop"
    """Treatment of images that cannot be decoded: stop the run before training starts, or leave them out and list
    them."""

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        """Read the splits, as `protocols.Data` describes.

        Raises UserError if the files are not below `root` and cannot be downloaded.
        """
        refuse("Torchvision", "class", target_kind)
        train_name, val_name = self._splits()
        train, names = self._load(train_name)
        if val_name is None:
            return set_aside(train.images, train.targets, names, self.val_fraction, seed)
        val, val_names = self._load(val_name)
        if names != val_names:
            raise UserError(f"data: the splits {train_name!r} and {val_name!r} of {self.name} differ in their classes")
        return Splits(train, val, names)

    def test_images(self, names: tuple[str, ...]) -> Split | None:
        """Return the official test split, or None if there is none or if it is used for training or validation.

        Nothing is downloaded. Raises UserError if its files are missing, or if its classes are not `names`.
        """
        style = SETS[self.name]
        has_test = style.argument == "train" or self.name in WITH_TEST
        if not has_test or "test" in self._splits():
            return None
        split, classes = dataclasses.replace(self, download=False)._load("test")
        if classes != names:
            raise UserError(f"data: the test split of {self.name} has other classes than its training split")
        return split

    def assets(self) -> list[Asset | OwnPath]:
        """Return the data set's files as an asset if `download` is set; else `root`, which stays where it is."""
        splits = [split for split in self._splits() if split is not None]
        if not self.download:
            return [OwnPath(field=f"data.root={self.root!r}", path=expanded(self.root).absolute())]

        def bring(files: Path, scratch: Path) -> str:
            root = files / self._place_in_assets()
            root.mkdir(parents=True)
            for split in splits:
                self._dataset(split, root, download=True)
            return f"torchvision.datasets.{self.name}"

        key = f"torchvision.datasets.{self.name}:{'+'.join(splits)}"
        return [Asset(key=key, field=f"data.name={self.name!r}", what=f"data set {self.name}", bring=bring)]

    def _splits(self) -> tuple[str, str | None]:
        """Return the names of the splits for training and for validation; None stands for a fraction of the former.

        Raises UserError for an unknown data set, and for splits of one that comes in one piece.
        """
        if self.name not in SETS:
            raise UserError(
                f"data.name: {self.name!r} is no torchvision data set that can be used here"
                f"{did_you_mean(self.name, sorted(SETS))}"
            )
        style = SETS[self.name]
        if style.argument is None and (self.train_split or self.val_split):
            raise UserError(f"data: {self.name} comes in one piece, so train_split and val_split cannot be chosen")
        train_name, val_name = self.train_split or style.train, self.val_split or style.val
        return train_name, None if val_name == train_name else val_name

    def _place_in_assets(self) -> Path:
        return Path("datasets", "torchvision", self.name)

    def _load(self, split: str) -> tuple[Split, tuple[str, ...]]:
        folder = assets_folder() if self.download else None
        if folder is not None:
            root = folder / self._place_in_assets()
            if not root.is_dir():
                raise UserError(
                    f"data.name={self.name!r}: data set {self.name} is not among the assets in {folder}; bring it, "
                    f"where there is network: {fetch_command(folder)}"
                )
            dataset = self._dataset(split, root, download=False)
        else:
            dataset = self._dataset(split, expanded(self.root).absolute(), self.download)
        images, labels = _images_and_labels(dataset, f"{self.name}:{split}")
        titles = getattr(dataset, "classes", None) or range(int(labels.max()) + 1)
        # Some classes are tuples of synonyms.
        names = tuple(", ".join(title) if isinstance(title, tuple) else str(title) for title in titles)
        return Split(images, labels), names

    def _dataset(self, split: str, root: Path, download: bool) -> Any:
        import torchvision.datasets

        style = SETS[self.name]
        arguments: dict[str, Any] = {"root": str(root), "download": download}
        if style.argument == "train":
            if split not in ("train", "test"):
                raise UserError(f"data: {self.name} has no split {split!r}; there are: train, test")
            arguments["train"] = split == "train"
        elif style.argument == "split":
            arguments["split"] = split
        make = getattr(torchvision.datasets, self.name)
        try:
            if download:
                root.mkdir(parents=True, exist_ok=True)
                with file_lock(root / f".{self.name}.lock"):  # one process downloads, the others find the files
                    return make(**arguments)
            return make(**arguments)
        except (RuntimeError, OSError, ImportError, ValueError) as error:
            raise UserError(self._what_to_do(error, root, split)) from error

    def _what_to_do(self, error: Exception, root: Path, split: str) -> str:
        if isinstance(error, ImportError) or "scipy" in str(error):
            return f"data: {self.name} needs another package: {error}"
        if "for argument split" in str(error):
            return f"data: {self.name} has no split {split!r}: {error}"
        reason = str(error).replace("You can use download=True to download it", "").rstrip(" .")
        if self.download:
            return (
                f"data.download: {self.name} could not be downloaded to {root}: {error}; without network, download "
                f"it on a machine that has one (torchvision.datasets.{self.name}(root, download=True)) and copy the "
                "folder there"
            )
        return (
            f"data.root: no complete {self.name} (split {split!r}) in {root}: {reason}; train with "
            "data.download=true where there is network, or copy the folder from a machine that has it"
        )


def _images_and_labels(dataset: Any, title: str) -> tuple[FileImages | ArrayImages, npt.NDArray[np.int64]]:
    """Return the paths or pixels that a data set has indexed, and its labels.

    Its items are not used, as torchvision's loader would decode them.
    """
    for attribute in ("samples", "_samples"):
        if hasattr(dataset, attribute):
            samples = getattr(dataset, attribute)
            return FileImages("", [str(path) for path, _ in samples]), _int64([label for _, label in samples])
    for attribute in ("_image_files", "_images"):
        if hasattr(dataset, attribute):
            return FileImages("", [str(path) for path in getattr(dataset, attribute)]), _int64(dataset._labels)
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 4 and pixels.shape[1] == 3:  # SVHN and STL10 hold (N, 3, H, W)
        pixels = pixels.transpose(0, 2, 3, 1)
    return ArrayImages(title, pixels), _int64(getattr(dataset, "targets", getattr(dataset, "labels", None)))


def _int64(labels: Any) -> npt.NDArray[np.int64]:
    return np.asarray(labels).astype(np.int64)
