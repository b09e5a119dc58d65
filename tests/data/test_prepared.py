"""Prepared copies: the pixels that the transforms would have made, of these very images, whole or not there."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from commands import ROOT, SUPPORT, RunCli
from launcher import Preprocessing, Recipe, Splits, data, transforms
from launcher.data.decoding import read_pixels, to_rgb
from launcher.data.prepare import make_copy
from launcher.data.prepared import Need, check_current, check_fits, need_of, read_copy, with_copy
from launcher.errors import UserError
from launcher.recipe.transforms import evaluation

PREPROCESSING = Preprocessing(image_size=24, resize_size=28)
KINDS = ("tall", "wide", "small")


def write_images(root: Path) -> None:
    noise = np.random.default_rng(0)
    for split, count in (("train", 7), ("val", 4)):
        for kind in KINDS:
            folder = root / split / kind
            folder.mkdir(parents=True)
            for number in range(count):
                size = {"tall": (60 + number, 90), "wide": (131, 47), "small": (20, 25)}[kind]
                coarse = Image.fromarray(noise.integers(0, 256, (9, 9, 3), dtype=np.uint8))
                image = coarse.resize(size, Image.Resampling.BICUBIC)
                if number == 1:  # a turned one
                    exif = Image.Exif()
                    exif[0x0112] = 6
                    image.save(folder / f"{number}.jpg", exif=exif)
                else:
                    image.save(folder / (f"{number}.png" if number == 2 else f"{number}.jpg"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


def recipe_of(root: Path, **augment: Any) -> Recipe:
    part = data.ImageFolder(root=str(root))
    return dataclasses.replace(tiny.recipe, data=part, augment=transforms.Augment(**augment))


def splits_of(recipe: Recipe) -> Splits:
    return recipe.data.build("class", recipe.seed)


def prepare(root: Path, folder: Path, **options: Any) -> tuple[Recipe, Splits, Splits]:
    """The recipe, its splits, and those of the copy in `folder`."""
    recipe = recipe_of(root)
    splits = splits_of(recipe)
    copy, _ = make_copy(recipe, splits, PREPROCESSING, folder, **options)
    return recipe, splits, with_copy(copy, recipe, splits)


@pytest.mark.slow
def test_validation_sees_the_very_same_pixels(root: Path, tmp_path: Path) -> None:
    for interpolation in ("bilinear", "bicubic", "nearest"):
        preprocessing = dataclasses.replace(PREPROCESSING, interpolation=interpolation)
        recipe, splits = recipe_of(root), splits_of(recipe_of(root))
        copy, _ = make_copy(recipe, splits, preprocessing, tmp_path / interpolation)
        prepared = with_copy(copy, recipe, splits)
        transform = evaluation(preprocessing)
        for index in range(len(splits.val)):
            expected = transform.pixels(read_pixels(splits.val.images, index))
            assert torch.equal(transform.pixels(read_pixels(prepared.val.images, index)), expected)
            # Also where only `read` is used, by a transform of a user's own.
            assert torch.equal(
                transform(to_rgb(prepared.val.images.read(index))), transform.normalise(expected[None])[0]
            )


def test_what_is_stored(root: Path, tmp_path: Path) -> None:
    """Upright, the shorter side as needed, nothing enlarged; names and targets as they were."""
    recipe, splits, prepared = prepare(root, tmp_path / "copy", workers=3)
    side = need_of(recipe, PREPROCESSING).train
    assert side == 29  # 24 / sqrt((0.35 + 1) / 2)
    for split, copied, kept in ((splits.train, prepared.train, side), (splits.val, prepared.val, 28)):
        assert np.array_equal(split.targets, copied.targets)
        for index in range(len(split)):
            assert split.images.name(index) == copied.images.name(index)
            original, stored = to_rgb(split.images.read(index)), copied.images.read(index)
            assert min(stored.size) == min(kept, *original.size)
            assert stored.width / stored.height == pytest.approx(original.width / original.height, rel=0.03)
            ideal = original.resize(stored.size, Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(ideal, int) - np.asarray(stored, int)).mean() < 3
    folder = tmp_path / "copy"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        *(
            f"{split}.{what}"
            for split in ("train", "val")
            for what in ("index.npy", "names.json", "pixels", "targets.npy")
        ),
    ]
    assert np.array_equal(np.load(folder / "train.targets.npy"), splits.train.targets)
    assert json.loads((folder / "val.names.json").read_text())[0].endswith("small/0.jpg")
    assert json.loads((folder / "manifest.json").read_text())["train"]["short_side"] == side


def test_any_number_of_threads_writes_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for workers in (1, 5):
        prepare(root, tmp_path / str(workers), workers=workers)
    for file in (tmp_path / "1").iterdir():
        assert file.read_bytes() == (tmp_path / "5" / file.name).read_bytes()


def test_workers_get_paths_not_pixels(root: Path, tmp_path: Path) -> None:
    _, _, prepared = prepare(root, tmp_path / "copy")
    first = read_pixels(prepared.train.images, 0)
    packed = pickle.dumps(prepared.train.images)
    assert len(packed) < (tmp_path / "copy" / "train.pixels").stat().st_size / 4
    assert torch.equal(read_pixels(pickle.loads(packed), 0), first)  # noqa: S301 - our own bytes
    first.zero_()  # what is done to a picture does not reach the file
    assert read_pixels(pickle.loads(packed), 0).float().mean() > 10  # noqa: S301


def changed(root: Path) -> Iterator[tuple[str, str]]:
    """Changes of the images one by one, and what is said of each."""
    path = root / "train" / "wide" / "3.jpg"
    content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    yield "another picture", r"1 train image\(s\) changed after it was made: .*wide/3\.jpg"
    path.write_bytes(content + b" ")
    os.utime(path, ns=times)
    yield "another size", r"1 train image\(s\) changed after it was made: .*wide/3\.jpg"
    path.write_bytes(content)
    extra = root / "val" / "tall" / "9.jpg"
    extra.write_bytes(content)
    yield "one more", r"made of 12 val images, the recipe has 13"
    extra.unlink()
    path.rename(path.with_name("4x.jpg"))
    yield "another name", r"2 train image\(s\) are others than it was made of"
    path.with_name("4x.jpg").rename(path)


def test_a_copy_of_other_images_is_refused(root: Path, tmp_path: Path) -> None:
    recipe, _, _ = prepare(root, tmp_path / "copy")
    copy = read_copy(tmp_path / "copy")
    seen = 0
    for _, words in changed(root):
        with pytest.raises(UserError, match=words + ".*; prepare it again$"):
            check_current(copy, splits_of(recipe))
        seen += 1
    assert seen == 4
    check_current(copy, splits_of(recipe))  # all is as it was, but for a time of change


def test_a_data_set_may_be_moved(root: Path, tmp_path: Path) -> None:
    """Then times of change tell nothing, and the content is compared."""
    prepare(root, tmp_path / "copy")
    shutil.copytree(root, tmp_path / "elsewhere")
    recipe = recipe_of(tmp_path / "elsewhere")
    check_current(read_copy(tmp_path / "copy"), splits_of(recipe))
    (tmp_path / "elsewhere" / "val" / "tall" / "0.jpg").write_bytes((root / "val" / "tall" / "3.jpg").read_bytes())
    with pytest.raises(UserError, match=r"1 val image\(s\) changed"):
        check_current(read_copy(tmp_path / "copy"), splits_of(recipe))


def test_sources_without_files_are_compared_by_content(tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny.recipe, data=tiny.StripeData(train=12, val=5))
    preprocessing = tiny.TinyBackbone().preprocessing()
    copy, _ = make_copy(recipe, splits_of(recipe), preprocessing, tmp_path / "copy")
    check_current(copy, splits_of(recipe))
    splits = splits_of(recipe)

    @dataclasses.dataclass(frozen=True)
    class Darker(tiny.Stripes):
        def read(self, index: int) -> Image.Image:
            image = super().read(index)
            return image.point(lambda level: level // 2) if index == 3 else image

    darker = dataclasses.replace(splits, train=dataclasses.replace(splits.train, images=Darker(12, 0)))
    with pytest.raises(UserError, match=r"1 train image\(s\) changed after it was made: stripes/0/3"):
        check_current(copy, darker)


def test_a_recipe_that_needs_larger_images_is_refused(root: Path, tmp_path: Path) -> None:
    prepare(root, tmp_path / "copy")
    copy = read_copy(tmp_path / "copy")
    larger = dataclasses.replace(PREPROCESSING, image_size=48, resize_size=50)
    with pytest.raises(UserError) as refused:
        check_fits(copy, recipe_of(root), larger)
    assert len(refused.value.problems) == 2
    assert "need a shorter side of 28 px, this recipe needs 50 px" in refused.value.problems[1]
    with pytest.raises(UserError, match=r"training images are prepared .* of 29 px, this recipe needs 33 px"):
        check_fits(copy, recipe_of(root, min_scale=0.05), PREPROCESSING)
    check_fits(copy, recipe_of(root, min_scale=0.6), dataclasses.replace(PREPROCESSING, image_size=16, resize_size=16))


def test_a_chosen_short_side_serves_the_recipe_that_it_was_chosen_for(root: Path, tmp_path: Path) -> None:
    prepare(root, tmp_path / "copy", short_side=22)
    copy = read_copy(tmp_path / "copy")
    assert copy.kept == Need(22, 28)
    check_fits(copy, recipe_of(root), PREPROCESSING)


def test_a_copy_is_whole_or_not_there(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"

    def stop(done: int) -> None:
        if done == 9:
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        prepare(root, folder, progress=stop)
    assert not folder.exists()
    assert not list(tmp_path.glob(".copy*"))
    # What a process leaves that is killed is cleared away.
    draft = tmp_path / f".copy.{32 * '0'}.draft"
    draft.mkdir()
    (draft / "train.pixels").write_bytes(b"half")
    folder.mkdir()  # an empty folder may be there
    prepare(root, folder)
    assert not draft.exists()
    # And again: every stored byte is looked at, nothing is written.
    recipe, splits = recipe_of(root), splits_of(recipe_of(root))
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    _, was_there = make_copy(recipe, splits, PREPROCESSING, folder)
    assert was_there
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    pixels = bytearray((folder / "train.pixels").read_bytes())
    pixels[1000] ^= 1
    (folder / "train.pixels").write_bytes(pixels)
    with pytest.raises(UserError, match=r"the pixels of train image 0 are damaged"):
        make_copy(recipe, splits, PREPROCESSING, folder)
    (folder / "train.pixels").write_bytes(pixels[:-1])
    with pytest.raises(UserError, match=r"the prepared copy is damaged \(train\.\*\); prepare it again"):
        with_copy(read_copy(folder), recipe, splits)


def test_damaged_pixels_are_never_trained_on(root: Path, tmp_path: Path) -> None:
    """The size and the index of the copy are right; only its pixels tell."""
    recipe, splits, _ = prepare(root, tmp_path / "copy")
    pixels = tmp_path / "copy/train.pixels"
    row = read_copy(tmp_path / "copy").rows("train")[5]
    content = bytearray(pixels.read_bytes())
    content[int(row["begin"]) + 7] ^= 1
    pixels.write_bytes(content)
    images = with_copy(read_copy(tmp_path / "copy"), recipe, splits).train.images
    name = re.escape(splits.train.images.name(5))
    for _ in range(2):  # it is no better the next time
        with pytest.raises(UserError, match=rf"is damaged \(the pixels of {name}\); prepare it again"):
            images.read(5)
    images.read(4)
    content[int(row["begin"]) + 7] ^= 1
    pixels.write_bytes(content)
    with_copy(read_copy(tmp_path / "copy"), recipe, splits).train.images.read(5)


@pytest.mark.slow
def test_folders_that_cannot_be_taken(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"holds other files"):
        prepare(root, root)
    with pytest.raises(UserError, match=r"no prepared copy there; make one"):
        read_copy(tmp_path / "nowhere")
    prepare(root, tmp_path / "copy")
    with pytest.raises(UserError, match=r"shorter sides of 29 px .*, not 40 px .*; remove it first"):
        prepare(root, tmp_path / "copy", short_side=40)
    lines: list[str] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10))
    with pytest.raises(UserError, match=r"needs about \d+\.\d kB, 10 bytes are free there"):
        prepare(root, tmp_path / "full", report=lines.append)
    assert len(lines) == 1
    assert not (tmp_path / "full").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--to .*/file: is no folder; give a folder that is empty"):
        prepare(root, tmp_path / "file")


def test_one_process_at_a_time(root: Path, tmp_path: Path) -> None:
    at_work, may_go_on = threading.Event(), threading.Event()

    def wait(done: int) -> None:
        at_work.set()
        assert may_go_on.wait(60)

    first = threading.Thread(target=prepare, args=(root, tmp_path / "copy"), kwargs={"progress": wait})
    first.start()
    try:
        assert at_work.wait(60)
        with pytest.raises(UserError, match="another process is preparing it"):
            prepare(root, tmp_path / "copy")
    finally:
        may_go_on.set()
        first.join()
    assert read_copy(tmp_path / "copy").samples == (21, 12)


def test_broken_images(root: Path, tmp_path: Path) -> None:
    (root / "train" / "tall" / "0.jpg").write_bytes(b"<html>")
    recipe = recipe_of(root)
    with pytest.raises(UserError, match=r"1 of 33 images cannot be read: .*tall/0\.jpg \(not an image"):
        prepare(root, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    skipping = dataclasses.replace(recipe, data=data.ImageFolder(root=str(root), on_bad_image="skip"))
    splits = splits_of(skipping)
    copy, _ = make_copy(skipping, splits, PREPROCESSING, tmp_path / "copy")
    check_current(copy, splits)
    prepared = with_copy(copy, skipping, splits)
    assert len(prepared.train) == 20
    assert "tall/0.jpg" in prepared.skipped[0]
    for index in range(20):
        original = to_rgb(prepared.train.images._source.read(index))  # type: ignore[attr-defined]
        stored = prepared.train.images.read(index)
        ideal = original.resize(stored.size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(ideal, int) - np.asarray(stored, int)).mean() < 3
    with pytest.raises(UserError, match="1 of 33 images cannot be read"):
        with_copy(copy, recipe, splits)
    (root / "train" / "tall" / "0.jpg").write_bytes((root / "train" / "tall" / "3.jpg").read_bytes())  # repaired
    with pytest.raises(UserError, match=r"1 train image\(s\) changed after it was made: .*tall/0\.jpg"):
        check_current(copy, splits)


RECIPE = """
import dataclasses
import tiny
from launcher import data
recipe = dataclasses.replace(tiny.recipe, data=data.ImageFolder(root="images"))
"""


def test_on_the_command_line(root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """Prepared, trained on, continued; then an image changes."""
    (tmp_path / "striped.py").write_text(RECIPE)
    python = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT)])}
    assert run_cli("prepare", "striped.py", "--to", "copy", env=python).code == 0
    again = run_cli("prepare", "striped.py", "--to", "copy", env=python)
    assert (again.code, again.out.splitlines()[0][:13]) == (0, "there already")
    words = ("striped.py", "--run-dir", "run", "--workers", "1", "freeze_plan.0.epochs=1", "freeze_plan.1.epochs=1")
    trained = run_cli(*words, "--prepared", "copy", env=python)
    assert trained.code == 0, trained.err
    log = (tmp_path / "run" / "log.txt").read_text() + trained.out
    assert "images from the prepared copy" in log
    assert "what is learned differs slightly" in log
    # A run does not change from one to the other midway.
    shutil.rmtree(tmp_path / "run" / "final")
    without = run_cli(*words, env=python)
    assert without.code == 2
    assert "the data are not those that the run began with (prepared copy: " in without.err
    # In the environment, as for a job on a cluster.
    plan = run_cli("plan", "striped.py", env=python | {"LAUNCHER_PREPARED": "copy"})
    assert plan.code == 0
    larger = run_cli("plan", "striped.py", "augment.min_scale=0.01", "--prepared", "copy", env=python)
    assert larger.code == 2
    assert larger.err.splitlines()[-1].startswith("error: ")
    assert "this recipe needs 23 px" in larger.err.splitlines()[-1]
    path = root / "val" / "wide" / "0.jpg"
    path.write_bytes((root / "val" / "wide" / "3.jpg").read_bytes())
    stale = run_cli(*words[:1], "--run-dir", "other", "--prepared", "copy", env=python)
    assert stale.code == 2
    (line,) = [line for line in stale.err.splitlines() if line.startswith("error: ")]
    assert "1 val image(s) changed after it was made" in line
    assert not (tmp_path / "other").exists()
