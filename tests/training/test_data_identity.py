"""The same data are the same content, wherever they lie; what differs is told by name."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import tiny
from launcher import Split, data
from launcher.errors import UserError
from launcher.training.data_identity import FILE, DataIdentity, changes, identify


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


def identity_of(folder: Path, memory: Path, part: Any = None) -> DataIdentity:
    splits = (part or data.ImageFolder(root=str(folder))).build("class", 0)
    return identify(splits, memory, 2, lambda line: None)


def overwrite(source: str, target: str) -> Callable[[Path], None]:
    """Other content of the same size and times is no disguise: the inode's own time tells."""

    def change(photos: Path) -> None:
        before = (photos / target).stat()
        (photos / target).write_bytes((photos / source).read_bytes())
        os.utime(photos / target, ns=(before.st_atime_ns, before.st_mtime_ns))

    return change


def swap(photos: Path) -> None:
    (photos / "train/cat/0.png").rename(photos / "aside.png")
    (photos / "train/dog/1.png").rename(photos / "train/cat/0.png")
    (photos / "aside.png").rename(photos / "train/dog/1.png")


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (overwrite("train/cat/0.png", "train/dog/1.png"), ["training: 1 of 6 images has other content: dog/1.png"]),
        (overwrite("train/cat/0.png", "val/dog/1.png"), ["validation: 1 of 4 images has other content: dog/1.png"]),
        (swap, ["training: 2 of 6 images are in another order: cat/0.png, dog/1.png"]),
        (lambda photos: (photos / "train/cat/1.png").unlink(), ["training: 6 images then, 5 now (gone: cat/1.png)"]),
        (
            lambda photos: PIL.Image.new("RGB", (8, 8)).save(photos / "val/cat/9.png"),
            ["validation: 4 images then, 5 now (new: cat/9.png)"],
        ),
        (
            lambda photos: [(photos / split / "dog").rename(photos / split / "hound") for split in ("train", "val")],
            ["names: cat, dog then, cat, hound now"],
        ),
        (
            lambda photos: (photos / "train/cat/2.png").rename(photos / "train/dog/-1.png"),
            ["training: 1 of 6 images has other targets: dog/-1.png"],
        ),
        (lambda photos: (photos / "train/cat/1.png").touch(), []),
        (lambda photos: (photos / "train/cat/1.png").rename(photos / "train/cat/1b.png"), []),
    ],
)
def test_what_changed_is_reported_by_name(
    photos: Path, tmp_path: Path, change: Callable[[Path], Any], lines: list[str]
) -> None:
    before = identity_of(photos, tmp_path / "memory")
    change(photos)
    assert changes(before, identity_of(photos, tmp_path / "memory")) == lines


def test_a_folder_that_moved_and_another_kind_of_source_are_the_same_data(photos: Path, tmp_path: Path) -> None:
    before = identity_of(photos, tmp_path / "memory")
    shutil.copytree(photos, tmp_path / "node-local")
    assert changes(before, identity_of(tmp_path / "node-local", tmp_path / "other-memory")) == []
    rows = [
        f"{file},{file.parent.name},{file.parents[1].name}"
        for split in ("train", "val")
        for file in sorted((photos / split).rglob("*.png"))
    ]
    (tmp_path / "all.csv").write_text("\n".join(["image,label,split", *rows]))
    table = data.CsvImages(path=str(tmp_path / "all.csv"), image_column="image", split_column="split")
    assert changes(before, identity_of(photos, tmp_path / "memory", table)) == []


def test_it_comes_back_from_its_file(photos: Path, tmp_path: Path) -> None:
    (photos / "train/cat/0.png").rename(photos / "train/cat" / os.fsdecode(b"\xff\xe9.png"))
    before = identity_of(photos, tmp_path / "memory")
    before.save(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    assert changes(DataIdentity.load(tmp_path), before) == []
    before.save(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content, "the same data give the same file"
    for damaged in (b"", content[:-30], b"PK", content[:200] + b"\0" * 50 + content[250:]):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(UserError, match=r"data\.npz: cannot be read"):
            DataIdentity.load(tmp_path)


def test_sources_that_are_no_files(tmp_path: Path) -> None:
    splits = tiny.StripeData(train=5, val=3).build("values", 0)
    before = identify(splits, tmp_path, 1, lambda line: None)
    other = Split(tiny.Stripes(5, 7), splits.train.targets + np.eye(5, 2))
    now = identify(dataclasses.replace(splits, train=other), tmp_path, 1, lambda line: None)
    assert changes(before, now) == [
        "training: 5 of 5 images have other content: 7/0, 7/1, 7/2 and 2 more",
        "training: 2 of 5 images have other targets: 7/0, 7/1",
    ]
