"""Broken images: found before training, and either told or left out and listed."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from launcher.data import ImageFolder
from launcher.data.decoding import can_tell_damage
from launcher.data.image_check import Broken, find_broken, look_at_all, on_bad_image_of, verified
from launcher.data.sources import ArrayImages, FileImages, Subset
from launcher.errors import UserError
from launcher.recipe.protocols import Split, Splits, TargetKind


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with 4 training and 2 validation images each; of class a two and one are broken."""
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(("a", "b")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng(index + 10 * (split == "val")).integers(
                    0, 256, (24, 24, 3), dtype=np.uint8
                )
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


@pytest.mark.slow
def test_a_users_own_part_and_source() -> None:
    assert on_bad_image_of(OwnData()) == "stop"
    assert on_bad_image_of(ImageFolder(root="x", on_bad_image="skip")) == "skip"
    assert look_at_all(OwnImages()).broken == [(4500, "'row 4500'")]


def noise(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for place, name in enumerate("ab"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                noise(index + 10 * place + 100 * (split == "val")).save(tmp_path / split / name / f"{index}.jpg")
    return tmp_path


def looked_at(root: Path, on_bad_image: Literal["stop", "skip"] = "stop") -> Splits:
    splits = ImageFolder(root=str(root)).build("class", 0)
    return verified(splits, find_broken(splits, resize_size=256), on_bad_image)


def test_the_same_picture_in_both_splits_or_in_two_classes_is_reported(pairs: Path) -> None:
    assert looked_at(pairs).notes == ()
    shutil.copy(pairs / "train/a/0.jpg", pairs / "val/a/copy.jpg")
    shutil.copy(pairs / "train/a/1.jpg", pairs / "val/b/other.jpg")
    both, differing = looked_at(pairs).notes
    assert both.startswith("2 of 8 validation images are training images, too (the same file content)")
    assert f"{pairs}/val/a/copy.jpg is {pairs}/train/a/0.jpg" in both
    assert differing == (
        "1 image has two classes (the same file content): "
        f"{pairs}/train/a/1.jpg ('a') and {pairs}/val/b/other.jpg ('b')"
    )


def test_pixels_without_files_are_compared_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    pixels[5] = pixels[0]
    targets = np.asarray([0, 1, 0, 1, 0, 0])
    images = ArrayImages("set", pixels)
    parts = [Split(Subset(images, np.asarray(rows)), targets[rows]) for rows in ([0, 1, 2, 3], [4, 5])]
    splits = Splits(*parts, ("a", "b"))  # type: ignore[arg-type, call-arg]
    assert find_broken(splits).notes[0].startswith("1 of 2 validation images is a training image, too")


def test_pipes_devices_and_pictures_of_extreme_shape_are_named_before_training(pairs: Path) -> None:
    os.mkfifo(pairs / "train/a/pipe.png")
    (pairs / "train/a/zero.jpg").symlink_to("/dev/zero")
    (pairs / "val/a/sparse.png").touch()
    os.truncate(pairs / "val/a/sparse.png", 2**40)
    (pairs / "val/b/pointer.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    noise(0, (1, 60_000)).save(pairs / "val/a/strip.png")
    noise(0, (60_000, 1)).save(pairs / "train/b/strip.jpg")
    reported = "\n".join(looked_at(pairs, "skip").skipped)
    assert reported.count("\n") == 5
    assert f"{pairs}/train/a/pipe.png (a named pipe, not a file)" in reported
    assert f"{pairs}/train/a/zero.jpg (a device, not a file)" in reported
    assert f"{pairs}/val/a/sparse.png (1,099,511,627,776 bytes are too many for an image" in reported
    assert "pointer.jpg (a git-lfs pointer, not the file itself; run git lfs pull" in reported
    assert f"{pairs}/val/a/strip.png (1 x 60000 pixels: too narrow to be enlarged to a shorter side of 256)" in reported
    assert f"{pairs}/train/b/strip.jpg (60000 x 1 pixels: too narrow" in reported


def test_what_decoders_put_up_with_is_counted_and_named(pairs: Path) -> None:
    dark = np.random.default_rng(0).integers(0, 4096, (8, 8)).astype(np.uint16)
    Image.fromarray(dark).save(pairs / "train/a/dark.tif")
    content = bytearray((pairs / "train/a/0.jpg").read_bytes())
    begin = content.index(b"\xff\xda") + 40
    for place in range(begin, len(content) - 2, 25):
        content[place] ^= 0x11
    damaged = pairs / "train/b/damaged.jpg"
    damaged.write_bytes(content)
    exif = Image.Exif()
    exif[270] = "text " * 20
    whole = exif.tobytes()
    noise(1).save(pairs / "val/b/exif.jpg", exif=whole[:-60])
    notes = looked_at(pairs).notes
    assert any(note.startswith("1 image with 16-bit pixels of which only 12 bits") for note in notes)
    assert any(note.startswith("1 image with a warning of Pillow: ") and "val/b/exif.jpg" in note for note in notes)
    if can_tell_damage():
        assert f"1 image with JPEG data that is damaged and was repaired by the decoder: {damaged}" in notes
