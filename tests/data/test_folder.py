"""Folders of images: classes, splits, and everything that can be wrong with them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import ROOT
from launcher.data import ImageFolder
from launcher.data.sources import FileImages
from launcher.errors import UserError
from launcher.recipe.protocols import Data, Splits

HYMENOPTERA = ROOT.parent / "shared" / "data" / "hymenoptera"


def make_images(folder: Path, **counts: int) -> Path:
    """Class folders with so many images each."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (8, 6), (number * 40, index, 0)).save(folder / name / f"{index}.png")
    return folder


def build(root: Path, seed: int = 0, **fields: float) -> Splits:
    return ImageFolder(root=str(root), **fields).build("class", seed)  # type: ignore[arg-type]


def error_of(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        build(root)
    assert all("\n" not in problem for problem in caught.value.problems)
    return str(caught.value)


def class_of_each(splits: Splits) -> dict[str, list[str]]:
    """For each split the folder of each image, where it says what the target says."""
    found = {}
    for title, split in (("train", splits.train), ("val", splits.val)):
        assert split.targets.dtype == np.int64
        assert len(split.images) == len(split)
        folders = [Path(split.images.name(index)).parent.name for index in range(len(split))]
        assert folders == [splits.names[target] for target in split.targets]
        found[title] = folders
    return found


def test_train_and_val_folders_with_classes_mapped_by_name(tmp_path: Path) -> None:
    make_images(tmp_path / "train", cat=2, dog=3, emu=1)
    make_images(tmp_path / "val", cat=1, emu=2)  # without dog, emu is class 1 of this folder
    splits = build(tmp_path)
    assert splits.names == ("cat", "dog", "emu")
    assert class_of_each(splits)["val"] == ["cat", "emu", "emu"]
    assert splits.val.targets.tolist() == [0, 2, 2]
    assert len(splits.train) == 6
    assert splits.skipped == ()
    image = splits.val.images.read(1)
    assert np.asarray(image)[0, 0].tolist() == [40, 0, 0]
    assert isinstance(ImageFolder(root=str(tmp_path)), Data)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_names_of_the_validation_folder(tmp_path: Path, name: str) -> None:
    make_images(tmp_path / "train", a=2)
    make_images(tmp_path / name, a=1)
    make_images(tmp_path / "test", a=9)
    assert class_of_each(build(tmp_path)) == {"train": ["a", "a"], "val": ["a"]}


def test_one_folder_of_classes_is_split_the_same_every_time(tmp_path: Path) -> None:
    make_images(tmp_path, **{"1": 10, "2": 5, "10": 2, "single": 1})
    splits = build(tmp_path)
    assert splits.names == ("1", "10", "2", "single"), "sorted as text, as torchvision does"
    found = class_of_each(splits)
    assert {name: found["val"].count(name) for name in splits.names} == {"1": 2, "2": 1, "10": 1, "single": 0}

    def names(splits: Splits) -> tuple[list[str], ...]:
        return tuple([s.images.name(i) for i in range(len(s))] for s in (splits.train, splits.val))

    train, val = names(splits)
    assert not set(train) & set(val)
    assert len(set(train) | set(val)) == 18
    assert names(build(tmp_path)) == (train, val)
    assert names(build(tmp_path, seed=1)) != (train, val)


def test_train_without_val_is_split(tmp_path: Path) -> None:
    make_images(tmp_path / "train", a=10, b=10)
    make_images(tmp_path / "test", a=1, b=1)
    splits = build(tmp_path, val_fraction=0.3)
    assert (len(splits.train), len(splits.val)) == (14, 6)


@pytest.mark.parametrize(
    ("train", "val"),
    [("training_set", "validation_set"), ("Train", "dev"), ("trainset", "holdout"), ("train images", "Eval-Set")],
)
def test_folders_that_are_splits_by_other_names(tmp_path: Path, train: str, val: str) -> None:
    make_images(tmp_path / train, cats=5, dogs=5)
    make_images(tmp_path / val, cats=2, dogs=1)
    splits = build(tmp_path)
    assert splits.names == ("cats", "dogs")
    # What is held out is for the end: then validation images are set aside.
    assert (len(splits.train), len(splits.val)) == ((8, 2) if val == "holdout" else (10, 3))


def test_the_usual_names_go_before_others_and_what_is_not_used_is_reported(tmp_path: Path) -> None:
    for name in ("train", "val", "eval", "extra", "test"):
        make_images(tmp_path / name, a=2, b=2)
    splits = build(tmp_path)
    assert (len(splits.train), len(splits.val)) == (4, 4)
    assert splits.notes == (f"not used: eval/, extra/ beside train/ in {tmp_path}",)


def test_splits_and_folds_are_never_classes(tmp_path: Path) -> None:
    make_images(tmp_path / "flat", train=3, test=2)
    assert "'test', 'train', by their names splits and not classes" in error_of(tmp_path / "flat")
    make_images(tmp_path / "only" / "training_set", **{"": 2})
    assert "'training_set', by their names splits" in error_of(tmp_path / "only")
    for name in ("a", "b"):
        make_images(tmp_path / "classes_first" / name, train=1, val=1)
        make_images(tmp_path / "folds" / f"fold_{'ab'.index(name)}", x=2, y=2)
        make_images(tmp_path / "sites" / name, x=2, y=2)
    assert "/classes_first/a holds the splits 'train', 'val'; expected train/<class>" in error_of(
        tmp_path / "classes_first"
    )
    assert "'fold_0', 'fold_1'" in (reported := error_of(tmp_path / "folds"))
    assert len(build(Path(reported.partition("(data.root=")[2].partition(")")[0])).names) == 2, "the advice works"
    assert build(tmp_path / "sites").names == ("a", "b")
    assert "holds the same folders 'x', 'y'" in build(tmp_path / "sites").notes[0]


def test_a_folder_around_the_data_is_named(tmp_path: Path) -> None:
    make_images(tmp_path / "outer" / "pets", cat=2, dog=2)
    make_images(tmp_path / "archive" / "pets" / "train", cat=2, dog=2)
    make_images(tmp_path / "archive" / "pets" / "val", cat=2, dog=2)
    for outer in ("outer", "archive"):
        reported = error_of(tmp_path / outer)
        assert reported.endswith(f"data.root={tmp_path / outer / 'pets'}")
        assert build(tmp_path / outer / "pets").names == ("cat", "dog")


def test_a_copy_of_the_data_inside_itself_is_left_out(tmp_path: Path) -> None:
    make_images(tmp_path, cat=3, dog=3)
    make_images(tmp_path / "pets", cat=3, dog=3)
    splits = build(tmp_path)
    assert splits.names == ("cat", "dog")
    assert splits.skipped == (f"{tmp_path}/pets/ (holds the class folders once more)",)


@pytest.mark.parametrize("name", ["@eaDir", "$RECYCLE.BIN", ".Trashes", "lost+found", "__MACOSX", "#recycle", "Thumbs"])
def test_system_folders_are_left_out_and_listed(tmp_path: Path, name: str) -> None:
    make_images(tmp_path / "train", **{"red": 3, "blue": 3, name: 1})
    make_images(tmp_path / "train" / "red" / name, **{"0.png": 2})
    splits = build(tmp_path)
    assert splits.names == ("blue", "red")
    assert len(splits.train) + len(splits.val) == 6
    kind = "hidden" if name.startswith(".") else "system"
    assert sorted(splits.skipped) == [
        f"{tmp_path}/train/{name}/ ({kind} folder, 1 image)",
        f"{tmp_path}/train/red/{name}/ ({kind} folder, 2 images)",
    ]


def test_unicode_forms_are_one_name_and_files_keep_their_bytes(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    make_images(tmp_path / "train", **{composed: 2, "b": 2})
    make_images(tmp_path / "val", **{decomposed: 1, "b": 1})
    splits = build(tmp_path)
    assert splits.names == ("b", composed)
    assert splits.val.targets.tolist() == [0, 1]
    assert splits.val.images.name(1) == f"{tmp_path}/val/{decomposed}/0.png"
    assert splits.val.images.read(1).size == (8, 6)
    make_images(tmp_path / "both", **{composed: 2, decomposed: 3, "b": 1})
    both = build(tmp_path / "both")
    assert both.names == ("b", composed)
    assert len(both.train) + len(both.val) == 6


def test_files_of_other_types_are_counted(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for file in ("1.dcm", "2.dcm", "3.npy"):
            (tmp_path / name / file).touch()
    assert "2 class folders, holding 6 files of other types (.dcm 4, .npy 2)" in error_of(tmp_path)


def test_train_may_be_a_class(tmp_path: Path) -> None:
    make_images(tmp_path, bus=2, train=2, tram=2)
    assert build(tmp_path).names == ("bus", "train", "tram")


def test_nested_linked_and_upper_case_files_are_found(tmp_path: Path) -> None:
    make_images(tmp_path / "pets", cat=1, dog=2)
    (tmp_path / "pets/cat/more").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pets/cat/more/A.JPG", "JPEG")
    make_images(tmp_path / "elsewhere", dogs=3)
    (tmp_path / "pets/dog/linked").symlink_to(tmp_path / "elsewhere/dogs")
    (tmp_path / "pets/dog/circle").symlink_to(tmp_path / "pets")
    splits = build(tmp_path / "pets")
    assert (splits.train.targets == 0).sum() + (splits.val.targets == 0).sum() == 2
    assert (splits.train.targets == 1).sum() + (splits.val.targets == 1).sum() == 5


def test_hidden_things_are_ignored_and_other_files_listed(tmp_path: Path) -> None:
    make_images(tmp_path, a=3, b=3)
    make_images(tmp_path, **{".ipynb_checkpoints": 2})
    make_images(tmp_path / "a", **{".thumbnails": 2})
    (tmp_path / "a/._0.png").write_bytes(b"left by a Mac")
    (tmp_path / "a/.DS_Store").write_bytes(b"")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "b/notes.txt").write_text("blurred?")
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    splits = build(tmp_path)
    assert splits.names == ("a", "b")
    assert len(splits.train) + len(splits.val) == 6
    assert sorted(splits.skipped) == [
        f"{tmp_path}/.ipynb_checkpoints/ (hidden folder, 2 images)",
        f"{tmp_path}/a/.thumbnails/ (hidden folder, 2 images)",
        f"{tmp_path}/b/notes.txt (not an image)",
        f"{tmp_path}/loose.png (not in a class folder)",
    ]


def test_odd_file_names_survive(tmp_path: Path) -> None:
    names = ["a b.png", "ünï.png", "x,\n.png", "\udcff.png"]  # the last is no valid text
    images = pickle.loads(pickle.dumps(FileImages(tmp_path, names)))  # noqa: S301 - our own bytes: workers get it so
    assert [images.name(index) for index in range(4)] == [str(tmp_path / name) for name in names]
    assert len(pickle.dumps(FileImages("/", [f"{i:09}" for i in range(1000)]))) < 20_000


def test_missing_folder_names_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"data.root: {tmp_path}/pets does not exist" in error_of(Path("pets"))
    Path("pets").write_text("")
    assert "is a file, not a folder" in error_of(Path("pets"))


def test_folders_without_images(tmp_path: Path) -> None:
    assert f"{tmp_path} has no class folders; expected {tmp_path.name}/<class>/<image>" in error_of(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    assert "has 1 image but no class folders" in error_of(tmp_path)
    make_images(tmp_path, a=0, b=0)
    assert "no images in" in error_of(tmp_path)


def test_empty_class_and_unknown_class_are_reported_together(tmp_path: Path) -> None:
    make_images(tmp_path / "train", cat=1, dog=0)
    make_images(tmp_path / "val", cat=1, cow=1, gnu=0)
    message = error_of(tmp_path)
    assert "train without an image: 'dog'; fill or remove them" in message
    assert "val without an image: 'gnu'" in message
    make_images(tmp_path / "ok" / "train", cat=1)
    make_images(tmp_path / "ok" / "val", cat=1, cow=1)
    assert "val has 1 class folder(s) that" in (message := error_of(tmp_path / "ok"))
    assert "lacks: 'cow'; classes are fixed by the training images" in message


def test_val_without_train_and_two_vals(tmp_path: Path) -> None:
    make_images(tmp_path / "val", a=1)
    assert "has a folder 'val' but none named 'train'" in error_of(tmp_path)
    make_images(tmp_path / "train", a=1)
    make_images(tmp_path / "validation", a=1)
    assert "has 'val', 'validation'; keep one of them" in error_of(tmp_path)


def test_too_few_to_set_some_aside(tmp_path: Path) -> None:
    make_images(tmp_path, a=1, b=1)
    assert "2 images in 2 classes are too few" in error_of(tmp_path)


def test_other_target_kinds_are_refused_with_the_part_that_fits(tmp_path: Path) -> None:
    make_images(tmp_path, a=2)
    for kind, words in (("labels", "several labels per image"), ("values", "numbers per image")):
        with pytest.raises(UserError, match=rf"one class per image, but the task reads {words}.*use data.CsvImages"):
            ImageFolder(root=str(tmp_path)).build(kind, seed=0)  # type: ignore[arg-type]


@pytest.mark.skipif(not HYMENOPTERA.is_dir(), reason="needs the hymenoptera images at ../shared/data/hymenoptera")
def test_real_photographs() -> None:
    splits = ImageFolder(root=HYMENOPTERA).build("class", seed=0)  # type: ignore[arg-type]  # a pathlib path is taken, too
    assert splits.names == ("ants", "bees")
    assert np.bincount(splits.val.targets).tolist() == [70, 83]
    assert len(splits.train) > 200
    assert splits.train.images.read(0).size[0] > 100


def test_folders_of_the_launcher_are_no_classes(tmp_path: Path) -> None:
    """Runs, sweeps and prepared copies are often kept beside the images; all that is in them stays."""
    make_images(tmp_path, a=6, b=6)
    alone = ImageFolder(root=str(tmp_path)).build("class", seed=0)
    for name in ("runs/one", "runs/of a week/two", "run"):
        make_images(tmp_path / name, explanation=2)
        for file in ("recipe.json", "environment.json"):
            (tmp_path / name / file).write_text("{}")
    for name, files in {
        "study": ("sweep.json", "journal.log"),
        "runs/study": ("sweep.json", "journal.log"),
        "copy": ("manifest.json", "train.index.npy"),
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
    splits = ImageFolder(root=str(tmp_path)).build("class", seed=0)
    assert splits.names == alone.names == ("a", "b")
    assert splits.skipped == (
        f"{tmp_path}/copy/ (a prepared copy)",
        f"{tmp_path}/run/ (a run dir)",
        f"{tmp_path}/runs/ (run dirs)",
        f"{tmp_path}/study/ (a sweep)",
    )


def test_a_run_dir_that_is_the_data_folder(tmp_path: Path) -> None:
    make_images(tmp_path, a=6, b=6, final=1, checkpoints=1)
    assert ImageFolder(root=str(tmp_path)).build("class", seed=0).names == ("a", "b", "checkpoints", "final")
    for file in ("recipe.json", "environment.json"):
        (tmp_path / file).write_text("{}")
    assert ImageFolder(root=str(tmp_path)).build("class", seed=0).names == ("a", "b")


def test_links_that_lead_round_in_circles_end(tmp_path: Path) -> None:
    make_images(tmp_path, b=6)
    make_images(tmp_path / "a", inner=6)
    (tmp_path / "a/inner/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/up").symlink_to(tmp_path / "a")
    assert ImageFolder(root=str(tmp_path)).build("class", seed=0).names == ("a", "b")
