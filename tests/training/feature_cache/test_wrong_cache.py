"""Features that are not those of this run are never used; damage and a full disk are told, and nothing is lost."""

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
import torch
from accelerate.state import AcceleratorState

import tiny
from feature_stores import difference, store_of
from launcher import Phase, Preprocessing, Recipe, data, phases, transforms
from launcher.data import digests
from launcher.data.digests import content_digests
from launcher.errors import UserError
from launcher.training.feature_cache.directory import entries, make_room
from launcher.training.feature_cache.shards import Shards
from runs import train


@dataclasses.dataclass(frozen=True, kw_only=True)
class OtherSize(tiny.TinyBackbone):
    resize_size: int = 16

    def preprocessing(self) -> Preprocessing:
        return dataclasses.replace(super().preprocessing(), resize_size=self.resize_size)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes, 12 images to train and 4 to validate."""
    draw = np.random.Generator(np.random.PCG64(0))
    for split, count in (("train", 6), ("val", 2)):
        for name in ("cats", "dogs"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def recipe(photos: Path) -> Recipe:
    return dataclasses.replace(
        tiny.recipe,
        backbone=OtherSize(),
        data=data.ImageFolder(root=str(photos)),
        freeze_plan=phases.linear_probe(epochs=1),
        batch_size=8,
        cache="disk",
    )


def was_there(run_dir: Path) -> bool:
    return "there already" in (run_dir / "log.txt").read_text()


@pytest.mark.slow
def test_the_same_recipe_hits_and_so_does_another_head_rate_or_number_of_epochs(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path / "first")
    assert not was_there(tmp_path / "first")
    from launcher import heads, optim

    for number, other in enumerate(
        [
            recipe,
            dataclasses.replace(recipe, head=heads.MLP(hidden=4)),
            dataclasses.replace(recipe, optim=optim.AdamW(lr=0.01)),
            dataclasses.replace(recipe, freeze_plan=phases.linear_probe(epochs=3)),
        ]
    ):
        train(other, tmp_path / str(number))
        assert was_there(tmp_path / str(number)), other


CHANGES: dict[str, Callable[[Recipe], Recipe]] = {
    "weights": lambda recipe: dataclasses.replace(recipe, backbone=OtherSize(width=9)),
    "preprocessing": lambda recipe: dataclasses.replace(recipe, backbone=OtherSize(resize_size=18)),
    "views": lambda recipe: dataclasses.replace(recipe, cache_views=1),
    "precision of storage": lambda recipe: dataclasses.replace(recipe, cache_precision="bf16"),
    "mixed precision": lambda recipe: dataclasses.replace(recipe, mixed_precision="bf16"),
    "rules": lambda recipe: dataclasses.replace(
        recipe,
        freeze_plan=(Phase(name="x", rules=(("head", 1.0), ("backbone.block2", 1.0), ("*", 0.0)), epochs=1),),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_the_outputs_misses(what: str, recipe: Recipe, tmp_path: Path) -> None:
    train(recipe, tmp_path / "first")
    AcceleratorState._reset_state(reset_partial_state=True)  # it would keep the first run's precision
    train(CHANGES[what](recipe), tmp_path / "changed")
    assert not was_there(tmp_path / "changed")


@pytest.mark.slow
def test_one_tensor_of_the_weights_changed_misses(recipe: Recipe, tmp_path: Path, monkeypatch: Any) -> None:
    """By one bit, behind the recipe's back."""
    train(recipe, tmp_path / "first")
    real = OtherSize.build

    def build(self: OtherSize) -> Any:
        network = real(self)
        with torch.no_grad():
            network.block1[0].weight[0, 0, 0, 0] += 1e-6
        return network

    monkeypatch.setattr(OtherSize, "build", build)
    train(recipe, tmp_path / "changed")
    assert not was_there(tmp_path / "changed")


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_one_image_replaced_misses_whatever_its_size_and_time(
    split: str, recipe: Recipe, photos: Path, tmp_path: Path
) -> None:
    victim, donor = photos / split / "cats" / "1.png", photos / split / "dogs" / "1.png"
    # Uncompressed pixels of the same size give files of the same size.
    for file in (victim, donor):
        PIL.Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()
    victim, donor = victim.with_suffix(".bmp"), donor.with_suffix(".bmp")
    train(recipe, tmp_path / "first")
    before = victim.stat()
    shutil.copyfile(donor, victim)
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (victim.stat().st_size, victim.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    train(recipe, tmp_path / "changed")
    assert not was_there(tmp_path / "changed")


def test_hashes_of_files_are_remembered_as_long_as_the_files_stay(photos: Path, tmp_path: Path) -> None:
    splits = data.ImageFolder(root=str(photos)).build("class", 0)

    def content() -> Any:
        steps = content_digests(splits.train.images, tmp_path / "memory", 2)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return done.value

    first = content()
    assert len(np.unique(first, axis=0)) == len(first) == 12
    (remembered,) = (tmp_path / "memory").iterdir()
    with np.load(remembered) as file:
        stats = file["stats"]
    np.savez(remembered, stats=stats, digests=np.zeros_like(first))
    assert not content().any()  # it did not read them again
    victim = Path(splits.train.images.name(5))
    victim.write_bytes(victim.read_bytes())  # the same content, another time
    again = content()
    assert again[5].tolist() == first[5].tolist()
    assert not np.delete(again, 5, axis=0).any()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_shard_is_computed_again(damage: str, recipe: Recipe, tmp_path: Path, cache: Path) -> None:
    train(recipe, tmp_path / "first")
    victim = sorted(cache.glob("features/*/*.rows"))[0]
    whole = victim.read_bytes()
    if damage == "flipped":
        victim.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    elif damage == "short":
        victim.write_bytes(whole[:-5])
    else:
        victim.unlink()
    train(recipe, tmp_path / "second")
    assert victim.read_bytes() == whole
    log = (tmp_path / "second" / "log.txt").read_text()
    assert (f"{victim}: damaged; computing it again" in log) == (damage == "flipped")
    assert difference(tmp_path / "first", tmp_path / "second") == 0


def test_an_image_that_cannot_be_read_any_more_is_named(
    recipe: Recipe, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = photos / "train" / "dogs" / "3.png"

    def content(file: Any) -> bytes:
        raise OSError(5, "Input/output error", str(victim))

    monkeypatch.setattr(digests, "content_digest", content)
    with pytest.raises(UserError) as reported:
        train(recipe, tmp_path / "run")
    assert list(reported.value.problems) == [f"data: {victim}: cannot be read (Input/output error)"]


@pytest.mark.slow
def test_a_full_disk_ends_a_run_that_asks_for_the_disk_with_one_line(
    recipe: Recipe, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Shards, "write", full)
        with pytest.raises(UserError) as reported:
            train(recipe, tmp_path / "run")
    assert list(reported.value.problems) == [
        f"features cannot be stored in {cache} (No space left on device); make room, name another folder by "
        "LAUNCHER_CACHE, or use cache=memory or cache=off"
    ]
    assert not list(cache.glob("features/*/*.rows"))
    train(recipe, tmp_path / "run")  # with room again, the same command
    train(recipe, tmp_path / "unbroken")
    assert difference(tmp_path / "run", tmp_path / "unbroken") == 0


@pytest.mark.slow
def test_with_auto_a_full_disk_is_reported_and_the_run_goes_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    from launcher.training.feature_cache import recorded_choice

    monkeypatch.setattr(recorded_choice, "choose", lambda *_: ("disk", "for the test"))
    train(dataclasses.replace(recipe, cache="auto"), tmp_path / "whole")
    assert store_of(tmp_path / "whole") == {"linear_probe": "disk"}
    monkeypatch.setattr(Shards, "write", full)
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "another"))
    train(dataclasses.replace(recipe, cache="auto"), tmp_path / "run")
    assert "(No space left on device)" in (tmp_path / "run" / "log.txt").read_text()
    assert store_of(tmp_path / "run") == {"linear_probe": "none"}
    assert difference(tmp_path / "whole", tmp_path / "run") < 1e-6


@pytest.mark.slow
def test_a_limit_that_the_features_exceed(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE_GB", "0.0000001")
    with pytest.raises(UserError, match="LAUNCHER_CACHE_GB allows 100 bytes"):
        train(recipe, tmp_path / "run")
    monkeypatch.setenv("LAUNCHER_CACHE_GB", "much")
    with pytest.raises(UserError, match="LAUNCHER_CACHE_GB=much: must be a number of gigabytes"):
        train(recipe, tmp_path / "run")


def test_the_longest_unused_goes_first_and_nothing_that_is_in_use(cache: Path) -> None:
    for age, name in ((50, "old"), (40, "newer"), (1, "in use")):
        folder = cache / "features" / name
        folder.mkdir(parents=True)
        (folder / "about.json").write_text("{}")
        (folder / "000000.rows").write_bytes(bytes(998))
        used = 1e9
        os.utime(folder / "about.json", (used, used))
        if age == 1:
            (folder / "about.json").touch()
        elif age == 40:
            os.utime(folder / "about.json", (used + 1, used + 1))
    assert [entry.path.name for entry in entries(cache)] == ["old", "newer", "in use"]
    assert make_room(cache, 500, 2600)
    assert [entry.path.name for entry in entries(cache)] == ["newer", "in use"]
    assert not make_room(cache, 2000, 2600)
    assert [entry.path.name for entry in entries(cache)] == ["in use"]
    assert not make_room(cache, 5000, 2600)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"cache": "off", "cache_views": 2},
            "cache_views=2: nothing is stored with cache='off'; leave one of them out",
        ),
        (
            {"augment": transforms.Augment(preset="none"), "cache_views": 2},
            "cache_views=2: augment.preset='none' gives the same picture each time; leave cache_views out, or choose "
            "another preset",
        ),
        (
            {"augment": transforms.Augment(cutmix_alpha=1.0), "cache": "disk"},
            "cache='disk': CutMix pastes pictures, which stored features no longer are; use augment.mixup_alpha, which "
            "can mix features, or cache='off'",
        ),
    ],
)
def test_settings_that_contradict_each_other(change: Any, line: str, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError) as reported:
        train(dataclasses.replace(recipe, **change), tmp_path / "run")
    assert list(reported.value.problems) == [line]
