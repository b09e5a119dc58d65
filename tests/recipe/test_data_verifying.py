"""Broken images: found before training, and either told or left out and listed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher.errors import UserError
from launcher.recipe.data import ImageFolder
from launcher.recipe.data.sources import FileImages
from launcher.recipe.data.verifying import Broken, broken_images, find_broken, on_bad_image_of, verified
from launcher.recipe.protocols import Split, Splits, TargetKind


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with 4 training and 2 validation images each; of class a two and one are broken."""
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(("a", "b")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng(index).integers(0, 256, (24, 24, 3), dtype=np.uint8)
                pixels[0, 0] = number
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index}.png")
    whole = (tmp_path / "train/a/1.png").read_bytes()
    (tmp_path / "train/a/1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/a/3.png").write_bytes(b"")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "val/a/0.tif")
    return tmp_path


def build(root: Path) -> Splits:
    return ImageFolder(root=str(root)).build("class", seed=0)


def test_broken_images_are_found_with_the_reason(root: Path) -> None:
    splits = build(root)
    seen: list[int] = []
    broken = find_broken(splits, workers=3, progress=seen.append)
    assert [index for index, _ in broken.train] == [1, 3]
    assert "truncated" in broken.train[0][1].lower()
    assert broken.train[1][1] == "empty file"
    assert [index for index, _ in broken.val] == [1], "0.tif, after 0.png"
    assert "no stated range" in broken.val[0][1]
    assert seen == list(range(1, 14)), "counted over both splits"
    assert pickle.loads(pickle.dumps(broken)) == broken  # noqa: S301 - our own bytes: it is sent to other processes


def test_stop_names_count_paths_and_reasons(root: Path) -> None:
    splits = build(root)
    with pytest.raises(UserError) as caught:
        verified(splits, find_broken(splits), "stop")
    (line,) = caught.value.problems
    assert line.startswith(f"data: 3 of 13 images cannot be read: {root}/train/a/1.png (")
    assert f"{root}/train/a/3.png (empty file)" in line
    assert line.endswith("repair or remove them, or leave them out with data.on_bad_image=skip")


def test_skip_removes_and_lists(root: Path) -> None:
    splits = build(root)
    kept = verified(splits, find_broken(splits), "skip")
    assert (len(kept.train), len(kept.val)) == (6, 4)
    assert kept.train.targets.tolist() == [0, 0, 1, 1, 1, 1]
    assert kept.names == splits.names
    assert [name.split(" (")[0] for name in kept.skipped] == [
        f"{root}/train/a/1.png",
        f"{root}/train/a/3.png",
        f"{root}/val/a/0.tif",
    ]
    for split in (kept.train, kept.val):
        for index in range(len(split)):
            assert np.asarray(split.images.read(index))[0, 0].tolist() == [split.targets[index]] * 3
    assert find_broken(kept) == Broken()


def test_nothing_broken_changes_nothing(root: Path) -> None:
    splits = build(root)
    for on_bad_image in ("stop", "skip"):
        assert verified(splits, Broken(), on_bad_image) is splits


def test_a_class_or_a_split_must_not_become_empty(root: Path) -> None:
    splits = build(root)
    of_a = tuple((index, "x") for index in np.flatnonzero(splits.train.targets == 0).tolist())
    with pytest.raises(UserError, match="no training image of 'a' can be read"):
        verified(splits, Broken(train=of_a), "skip")
    with pytest.raises(UserError, match="no validation image can be read"):
        verified(splits, Broken(val=tuple((index, "x") for index in range(len(splits.val)))), "skip")


def test_targets_that_are_not_classes_may_lose_any_image(root: Path) -> None:
    images = FileImages(root, ["train/a/0.png", "train/a/1.png", "train/a/2.png"])
    split = Split(images, np.asarray([[1.5], [2.5], [3.5]], dtype=np.float32))
    kept = verified(Splits(split, split, ("x",)), Broken(train=((1, "x"),)), "skip")
    assert kept.train.targets.tolist() == [[1.5], [3.5]]


class OwnData:
    """A user's part, without a word on broken images."""

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        raise NotImplementedError


class OwnImages:
    """A user's source, whose errors are of no kind that anybody promised."""

    def __len__(self) -> int:
        return 5000

    def read(self, index: int) -> Image.Image:
        if index == 4500:
            raise KeyError("row 4500")
        return Image.new("RGB", (1, 1))

    def name(self, index: int) -> str:
        return str(index)


def test_a_users_own_part_and_source() -> None:
    assert on_bad_image_of(OwnData()) == "stop"
    assert on_bad_image_of(ImageFolder(root="x", on_bad_image="skip")) == "skip"
    assert broken_images(OwnImages()) == [(4500, "'row 4500'")]
