"""torchvision's data sets, read by its own classes from real files."""

from __future__ import annotations

import inspect
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from launcher.data import Torchvision
from launcher.data.decoding import to_rgb
from launcher.data.torchvision_datasets import SETS
from launcher.errors import UserError
from launcher.recipe.protocols import Data, TargetKind


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files: uint8 with its shape before it."""
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_mnist(root: Path) -> np.ndarray:
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", pixels if prefix == "train" else 255 - pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.arange(20, dtype=np.uint8) % 10)
    return pixels


def error_of(kind: TargetKind = "class", **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        Torchvision(**fields).build(kind, seed=0)
    return str(caught.value)


def test_arrays(tmp_path: Path) -> None:
    pixels = write_mnist(tmp_path)
    part = Torchvision(name="MNIST", root=str(tmp_path))
    assert isinstance(part, Data)
    splits = part.build("class", seed=0)
    assert splits.names[3] == "3 - three"
    assert (len(splits.train), len(splits.val)) == (10, 10)
    assert sorted(splits.val.targets) == list(range(10)), "one of each class"
    row = int(splits.val.images.name(0).removeprefix("MNIST:train[").removesuffix("]"))
    assert np.array_equal(np.asarray(splits.val.images.read(0)), pixels[row])
    assert np.asarray(to_rgb(splits.val.images.read(0))).shape == (28, 28, 3)

    tested = Torchvision(name="MNIST", root=str(tmp_path), val_split="test").build("class", seed=0)
    assert len(tested.train) == 20
    assert np.array_equal(np.asarray(tested.val.images.read(4)), 255 - pixels[4])


def test_files_are_decoded_by_our_decoder(tmp_path: Path) -> None:
    """torchvision itself ignores the orientation of these photographs."""
    images, annotations = (tmp_path / "oxford-iiit-pet" / name for name in ("images", "annotations"))
    images.mkdir(parents=True)
    annotations.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    lines = []
    for label, breed in ((1, "Abyssinian"), (2, "american_bulldog")):
        for index in range(3):
            Image.new("RGB", (12, 8)).save(images / f"{breed}_{index}.jpg", exif=exif)
            lines.append(f"{breed}_{index} {label} 1 1")
    (annotations / "trainval.txt").write_text("\n".join(lines))
    splits = Torchvision(name="OxfordIIITPet", root=str(tmp_path)).build("class", seed=0)
    assert splits.names == ("Abyssinian", "American Bulldog")
    assert splits.train.targets.tolist() == [0, 0, 1, 1]
    assert to_rgb(splits.val.images.read(0)).size == (8, 12)
    assert splits.train.images.name(0).startswith(str(images))


def test_a_set_in_one_piece(tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        (tmp_path / "eurosat" / "2750" / name).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (4, 4)).save(tmp_path / "eurosat" / "2750" / name / f"{index}.jpg")
    splits = Torchvision(name="EuroSAT", root=str(tmp_path)).build("class", seed=0)
    assert splits.names == ("Forest", "River")
    assert (len(splits.train), len(splits.val)) == (8, 2)
    assert "comes in one piece" in error_of(name="EuroSAT", root=str(tmp_path), val_split="test")


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_table_fits_torchvision(name: str, tmp_path: Path) -> None:
    """Constructors take what we pass, and absent files give the one clear line."""
    parameters = inspect.signature(getattr(torchvision.datasets, name)).parameters
    for argument in ("train", "split"):
        assert (argument in parameters) == (SETS[name].argument == argument)
    assert "download" in parameters
    message = error_of(name=name, root=str(tmp_path))
    assert message.startswith(f"data.root: no complete {name} (split '{SETS[name].train}') in {tmp_path}: ")
    assert message.endswith(
        "train with data.download=true where there is network, or copy the folder from a machine that has it"
    )


def test_a_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets.EuroSAT, "download", _refused)
    message = error_of(name="EuroSAT", root=str(tmp_path / "new"), download=True)
    assert message.startswith(f"data.download: EuroSAT could not be downloaded to {tmp_path}/new: <urlopen error")
    assert "torchvision.datasets.EuroSAT(root, download=True)" in message


def _refused(dataset: Any) -> None:
    import urllib.request

    urllib.request.urlopen("http://127.0.0.1:9/EuroSAT.zip")


def test_unknown_names_and_splits(tmp_path: Path) -> None:
    assert "'Flower102' is no torchvision data set that can be used here; did you mean 'Flowers102'?" in error_of(
        name="Flower102", root=str(tmp_path)
    )
    assert "MNIST has no split 'val'; there are: train, test" in error_of(
        name="MNIST", root=str(tmp_path), train_split="val"
    )
    assert "DTD has no split 'dev': " in (message := error_of(name="DTD", root=str(tmp_path), train_split="dev"))
    assert "'train', 'val', 'test'" in message
    assert "gives one class per image" in error_of("values", name="MNIST", root=str(tmp_path))
