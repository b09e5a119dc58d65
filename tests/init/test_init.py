"""`init`: what it finds, what it decides, and that what it writes plans and trains."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from launcher.cli import main
from launcher.errors import UserError
from launcher.init import networks
from launcher.init.columns import looks_like_lists, targets_in, text_column, typed_column
from launcher.init.findings import DataFindings
from launcher.init.images import ImageFindings
from launcher.init.machine import Machine, machine
from launcher.init.networks import LITE0, RESNET50, choose
from launcher.init.recipe_text import recipe_text
from launcher.init.rules import decide, image_size_for
from launcher.recipe.loading import load_recipe
from launcher.recipe.recipe import Recipe
from weight_server import served

SHORT = ("backbone.name=test_efficientnet", "backbone.weights=none", "backbone.match_by_order=false")
"""A network of timm's for tests, in place of the one that the recipe has."""
CPU, GPU = Machine(0, "", None, 2), Machine(1, "H100", 80.0, 16)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # set by torch's compiler, which optimizers import
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("COLUMNS", "120")
    # Weights that happen to be in the caches of this machine would change what is chosen.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(autouse=True)
def recipes_are_forgotten() -> Iterator[None]:
    yield
    sys.modules.pop("recipe", None)


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> PIL.Image.Image:
    levels = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (size[1], size[0], 3))
    return PIL.Image.fromarray(levels.astype(np.uint8))


def images(folder: Path, count: int, ending: str = "png", size: tuple[int, int] = (40, 30)) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}.{ending}" for number in range(count)]
    for number, name in enumerate(names):
        picture(number, size).save(folder / name)
    return names


def written_csv(file: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return file


def init(source: str, *options: str) -> Recipe:
    assert main(["init", source, *options]) == 0
    to = options[options.index("--to") + 1] if "--to" in options else "recipe.py"
    sys.modules.pop(Path(to).stem, None)
    recipe: Recipe = load_recipe(to).recipe
    return recipe


def trains(recipe: Recipe) -> dict[str, Any]:
    """`plan` has nothing against the recipe as it is; cut short and with a tiny network it trains."""
    assert recipe.backbone.name == "tf_efficientnet_lite0"  # type: ignore[attr-defined]
    assert main(["plan", "recipe.py"]) == 0
    short = [f"freeze_plan.{phase}.epochs=1" for phase in range(len(recipe.freeze_plan))]
    assert main(["recipe.py", *SHORT, "backbone.image_size=32", *short, "--workers", "0"]) == 0
    metrics: dict[str, Any] = json.loads(Path("runs/recipe/final/metrics.json").read_text())
    return metrics


def refused(source: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What `init` says when it refuses: one line, and no file."""
    before = {path.name for path in Path().iterdir()}
    assert main(["init", source, *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == before
    return err


def is_formatted(file: Path) -> bool:
    """At the formatter's default width and at this project's."""
    return all(
        subprocess.run(
            ["ruff", "format", "--isolated", "--check", "--line-length", width, file], check=False
        ).returncode
        == 0
        for width in ("88", "120")
    ) and (
        subprocess.run(["ruff", "check", "--isolated", "--select", "E4,E7,E9,F,I", file], check=False).returncode == 0
    )


@pytest.mark.slow
def test_class_folders_without_validation(capsys: pytest.CaptureFixture[str]) -> None:
    images(Path("pets/cat"), 24)
    images(Path("pets/dog"), 26, "jpg")
    Path("pets/dog/notes.txt").write_text("no image")
    recipe = init("pets")
    out = capsys.readouterr().out
    assert "40 training, 10 validation (a random part)" in out
    assert "2 classes (cat: 19, dog: 21)" in out
    assert "1 file is left out" in out
    text = Path("recipe.py").read_text()
    assert 'root="pets"' in text
    assert "40 images, 2 classes: 20 of each" in text
    assert is_formatted(Path("recipe.py"))
    assert "python -m launcher plan recipe.py" in out
    assert recipe.batch_size == 8
    metrics = trains(recipe)
    assert 0 <= metrics["accuracy"] <= 1


@pytest.mark.slow
def test_train_val_and_test_folders(capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 10), ("valid", 3), ("test", 2)):
        for name in ("ants", "bees"):
            images(Path("insects", split, name), count, size=(300, 260))
    recipe = init("insects")
    shown = " ".join(capsys.readouterr().out.split())
    assert "20 training, 6 validation (valid/)" in shown
    assert "4 test images, untouched; at the end: python -m launcher evaluate RUN_DIR --split test" in shown
    text = Path("recipe.py").read_text()
    assert "val_fraction" not in text
    assert "image_size" not in text  # the pictures are large enough
    assert [phase.name for phase in recipe.freeze_plan] == ["linear_probe"]  # 10 of each class
    assert recipe.cache_views == 4
    trains(recipe)


@pytest.mark.slow
def test_a_table_of_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    names = images(Path("faces/photos/all"), 30)
    rows = {"id": range(30), "file": names, "age": [20 + 1.5 * row for row in range(30)]}
    written_csv(Path("faces/ages.csv"), rows)
    recipe = init("faces/ages.csv")
    text = Path("recipe.py").read_text()
    assert "tasks.Regression()" in text
    assert 'image_column="file",' in text
    assert 'label_column="age",' in text
    assert 'root="faces/photos/all",' in text
    assert "age 20 to" in text
    assert is_formatted(Path("recipe.py"))
    assert trains(recipe)["mae"] > 0


@pytest.mark.slow
def test_a_table_of_labels_found_in_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    names = images(Path("scenes"), 30)
    split = ["val" if row % 5 == 0 else "train" for row in range(30)]
    labels = {"sky": [row % 2 for row in range(30)], "sea": [int(row % 3 == 0) for row in range(30)]}
    written_csv(Path("scenes/labels.tsv"), {"path": names, "use": split, **labels})
    recipe = init("scenes")
    text = Path("recipe.py").read_text()
    assert "tasks.MultiLabel()" in text
    assert 'label_column=("sky", "sea"),' in text
    assert 'split_column="use",' in text
    assert "24 images to train on, 6 to validate on: the rows that column 'use' calls val" in _unwrapped(text)
    assert is_formatted(Path("recipe.py"))
    assert 0 <= trains(recipe)["map"] <= 1


@pytest.mark.slow
def test_labels_that_do_not_vary_in_validation() -> None:
    """No image can be ranked by them: mean average precision, the metric otherwise, is not defined."""
    names = images(Path("scenes"), 12)
    split = ["val" if row % 6 == 0 else "train" for row in range(12)]
    labels = {"sky": [row % 2 for row in range(12)], "sea": [int(row % 3 == 0) for row in range(12)]}
    written_csv(Path("scenes/labels.csv"), {"path": names, "use": split, **labels})
    recipe = init("scenes")
    assert [phase.monitor for phase in recipe.freeze_plan] == ["loss"]
    assert "Judged by the loss: no label varies in the validation images." in _unwrapped(Path("recipe.py").read_text())
    assert trains(recipe)["loss"] > 0


@pytest.fixture
def no_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hub-cache")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def parquet(file: Path, count: int, features: Mapping[str, Any], **columns: Sequence[Any]) -> None:
    import datasets

    def encoded(row: int) -> dict[str, Any]:
        picture(row).save(content := io.BytesIO(), "png")
        return {"bytes": content.getvalue(), "path": f"{row}.png"}

    rows = {"image": [encoded(row) for row in range(count)], **columns}
    table = datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), **features}))
    file.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(str(file))


@pytest.mark.slow
@pytest.mark.usefixtures("no_hub")
def test_a_parquet_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    features = {"label": datasets.ClassLabel(names=["ant", "bee", "fly"]), "weight": datasets.Value("float32")}
    for split, count in (("train", 66), ("validation", 9), ("test", 6)):
        columns = {"label": [row % 3 for row in range(count)], "weight": [float(row) for row in range(count)]}
        parquet(Path(f"flies/{split}-00000-of-00001.parquet"), count, features, **columns)  # type: ignore[arg-type]
    recipe = init("flies")
    text = _unwrapped(Path("recipe.py").read_text())
    assert 'data=data.HuggingFace(path="flies", label_column="label"),' in text
    assert "66 images to train on, 9 to validate on: the split 'validation'." in text
    assert "Not used: weight (numbers" in text
    assert "The split 'test' (6 images) is kept for the end." in text
    assert is_formatted(Path("recipe.py"))
    trains(recipe)


@pytest.mark.usefixtures("no_hub")
def test_a_parquet_file_with_classes_stored_as_numbers_with_a_point() -> None:
    import datasets

    sick = [float(row % 2) for row in range(20)]
    parquet(Path("x.parquet"), 20, {"sick": datasets.Value("float64")}, sick=sick)
    assert 'data.HuggingFace(path="x.parquet", label_column="sick"' in _unwrapped(_written("x.parquet"))
    assert "tasks.Classification(" in Path("recipe.py").read_text()


@pytest.mark.usefixtures("no_hub")
def test_a_parquet_file_with_lists_of_labels() -> None:
    import datasets

    tags = [["sea"] if row % 2 else ["sea", "sky"] for row in range(20)]
    parquet(Path("x.parquet"), 20, {"tags": datasets.Sequence(datasets.Value("string"))}, tags=tags)
    assert 'data.HuggingFace(path="x.parquet", label_column="tags"' in _unwrapped(_written("x.parquet"))
    assert "tasks.MultiLabel()" in Path("recipe.py").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("no_hub")
def test_images_with_metadata_in_json_lines() -> None:
    rows = [{"file_name": name, "label": "ab"[row % 2]} for row, name in enumerate(images(Path("photos"), 12))]
    Path("photos/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for source in ("photos", "photos/metadata.jsonl"):
        assert 'data.HuggingFace(path="photos", label_column="label"' in _unwrapped(_written(source, "--overwrite"))


def test_a_data_set_of_the_hub(tmp_path: Path, run_cli: Any) -> None:
    import datasets

    repository = tmp_path / "served/datasets/someone/bugs"
    features = {"label": datasets.ClassLabel(names=["ant", "bee"])}
    parquet(repository / "train.parquet", 30, features, label=[row % 2 for row in range(30)])
    with served(tmp_path / "served") as server:
        env = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home")}
        done = run_cli("init", "someone/bugs", env=env)
    assert done.code == 0, done.err
    assert 'data.HuggingFace(path="someone/bugs", label_column="label"' in _unwrapped(Path("recipe.py").read_text())
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "nothing")}
    done = run_cli("init", "someone/else", "--to", "other.py", env=env)
    assert done.code == 2
    assert "data set 'someone/else' is not on this machine" in done.err
    assert not Path("other.py").exists()


def _written(source: str, *options: str) -> str:
    init(source, *options)
    return Path("recipe.py").read_text()


def _unwrapped(text: str) -> str:
    """Comments and calls on one line each."""
    joined = " ".join(line.strip().removeprefix("# ") for line in text.splitlines())
    return joined.replace("( ", "(").replace(", )", ")")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["it's", 'say "hi"', 'it\'s "both"', "图片 二", "a b", "back\\slash", "line\nbreak", '"""']
)
def test_any_name_is_quoted(name: str) -> None:
    for label in ("one", name):
        images(Path(name, label), 3)
    recipe: Any = init(name)
    assert recipe.data.root == name
    assert is_formatted(Path("recipe.py"))


@pytest.mark.slow
def test_paths_are_relative_below_the_current_folder_and_absolute_elsewhere(tmp_path: Path) -> None:
    for label in ("a", "b"):
        images(Path("data/pets", label), 3)
    assert 'root="data/pets"' in _written(str(tmp_path / "data/pets"))
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    recipe: Any = init("../data/pets", "--to", "other.py")
    assert recipe.data.root == f"{tmp_path}/data/pets"


def test_a_recipe_is_written_over_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("a", "b"):
        images(Path("pets", label), 3)
    Path("recipe.py").write_text("mine = 1\n")
    assert "is there already" in refused("pets", capsys)
    assert Path("recipe.py").read_text() == "mine = 1\n"
    init("pets", "--overwrite")
    assert {path.name for path in Path().iterdir()} - {"__pycache__"} == {"pets", "recipe.py"}


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("recipe.txt", "end its name in .py"),
        ("nowhere/recipe.py", "no folder"),
        ("torch.py", "its module name 'torch' is also that of"),
        ("a.b.py", "rename it"),
    ],
)
def test_places_that_are_no_recipes(to: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("a", "b"):
        images(Path("pets", label), 2)
    assert said in refused("pets", capsys, "--to", to)


def test_nothing_is_left_of_a_file_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("a", "b"):
        images(Path("pets", label), 2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    assert "cannot be written: No space left on device" in refused("pets", capsys)


def _flat_splits() -> None:
    images(Path("x/train"), 3)
    images(Path("x/test"), 3)


def _unknown_in_val() -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "zebra")):
        images(Path("x", split, name), 2)


def _without_ending() -> None:
    names = images(Path("x/train_images"), 6)
    written_csv(Path("x/train.csv"), {"id": [Path(name).stem for name in names], "label": [0, 1] * 3})


def _broken() -> None:
    for label in ("a", "b"):
        Path("x", label).mkdir(parents=True)
        Path("x", label, "1.png").write_bytes(b"no image")
        Path("x", label, "2.png").write_bytes(b"")


def _table(name: str = "t.csv", count: int = 6, **columns: Sequence[Any]) -> None:
    written_csv(Path("x", name), {"path": images(Path("x"), count), **columns})


def _lines(*lines: str) -> None:
    images(Path("x"), 6)
    Path("x/t.csv").write_text("\n".join([*lines, ""]))


def _parquet_of_paths() -> None:
    import pyarrow
    import pyarrow.parquet

    names = images(Path("x"), 4)
    pyarrow.parquet.write_table(pyarrow.table({"path": names, "label": [0, 1, 0, 1]}), "x/t.parquet")


def _parquet_of_structs() -> None:
    import pyarrow
    import pyarrow.parquet

    Path("x").mkdir()
    rows = pyarrow.table({"image": [{"bytes": b"1", "path": "1.png"}] * 4, "label": [0, 1, 0, 1]})
    pyarrow.parquet.write_table(rows, "x/t.parquet")


MISTAKES: dict[str, tuple[Any, str, str]] = {
    "nothing there": (lambda: None, "x", "no such folder or file"),
    "a misspelt path": (lambda: None, "data/pets/train", "no such folder or file"),
    "empty": (lambda: Path("x").mkdir(), "x", "an empty folder; it should hold one folder of images per class"),
    "one class": (
        lambda: images(Path("x/cat"), 3),
        "x",
        "has one class folder, 'cat', so there is nothing to tell apart",
    ),
    "one class in train": (lambda: images(Path("x/train/cat"), 3), "x", "train: has one class folder, 'cat'"),
    "no labels": (lambda: images(Path("x"), 3), "x", "has 3 images without labels; expected one folder"),
    "no labels in splits": (_flat_splits, "x", "images in 'test', 'train' are in no class folders"),
    "empty classes": (lambda: Path("x/a").mkdir(parents=True), "x", "no images in"),
    "unknown in val": (_unknown_in_val, "x", "1 class folder(s) that"),
    "all broken": (_broken, "x", "none of the 4 images looked at can be read"),
    "an image": (lambda: images(Path("x"), 1), "x/0.png", "an image; give the folder of all of them"),
    "no table": (lambda: (Path("x").mkdir(), Path("x/t.md").write_text("hi")), "x/t.md", "no table of images; wanted"),
    "binary": (
        lambda: (Path("x").mkdir(), Path("x/t.csv").write_bytes(b"\xff\xfe,\x00\n\x80,1\n")),
        "x/t.csv",
        "not text in UTF-8",
    ),
    "no parquet": (lambda: (Path("x").mkdir(), Path("x/t.parquet").write_text("hi")), "x/t.parquet", "no parquet file"),
    "json lines": (
        lambda: (Path("x").mkdir(), Path("x/t.jsonl").write_text("{}")),
        "x/t.jsonl",
        "call it metadata.jsonl",
    ),
    "no rows": (lambda: written_csv(Path("x/t.csv"), {"path": [], "label": []}), "x", "has no rows below its header"),
    "semicolons": (
        lambda: (Path("x").mkdir(), Path("x/t.csv").write_text("path;label\n1.png;2\n")),
        "x",
        "separated by semicolons, not by commas",
    ),
    "no images": (
        lambda: written_csv(Path("x/t.csv"), {"file": ["a.png", "b.png"], "label": [0, 1]}),
        "x",
        "no column names images that are there: 'a.png' of column 'file' is not in",
    ),
    "no endings": (_without_ending, "x", "column 'id' names images without their ending: '0' for '0.png'"),
    "no targets": (lambda: _table(caption=[f"photo {n}" for n in range(6)]), "x", "no column looks like a target"),
    "one value": (lambda: _table(label=["a"] * 6), "x", "no column looks like a target"),
    "no header": (
        lambda: (images(Path("x"), 4), Path("x/t.csv").write_text("".join(f"{n}.png,{n % 2}\n" for n in range(4)))),
        "x",
        "has no header: its first line names the image '0.png'; put a line with the names of the columns above it, "
        "such as path,label",
    ),
    "split folders without classes": (
        lambda: [images(Path("x", name), 3) for name in ("training_set", "test_set")],
        "x",
        "images in 'test_set', 'training_set' are in no class folders",
    ),
    "test folder alone": (
        lambda: [images(Path("x/test", name), 3) for name in ("a", "b")],
        "x",
        "x: has a folder 'test' but none named 'train'; expected train/<class>/<image> beside it",
    ),
    "nothing to train on": (
        lambda: _table(label=["a", "b"] * 3, split=["test"] * 6),
        "x",
        "column 'split' says train for no image; there is nothing to train on",
    ),
    "a quote that is not closed": (
        lambda: _lines("path,label", '0.png,"a', "1.png,b", "2.png,a", '3.png,"b"', "4.png,a", "5.png,b"),
        "x",
        "t.csv, up to line 5: ',' expected after '\"'; a cell that begins with a quote must end with one",
    ),
    "a cell too many": (lambda: _lines("path,label", "0.png,a", "1.png,b,c"), "x", "line 3: 3 cells, but the header"),
    "a cell too few": (lambda: _lines("", "path,label", "0.png", "1.png,b"), "x", "line 3: 1 cell, but the header"),
    "train and test": (
        lambda: _table(label=["a", "b"] * 3, split=["train"] * 4 + ["test"] * 2),
        "x",
        "says train and test, but val for no image",
    ),
    "odd split": (
        lambda: _table(label=["a", "b"] * 3, split=["1", "2", "3"] * 2),
        "x",
        "should say train, val or test",
    ),
    "several tables": (
        lambda: (_table("a.csv", label=[0, 1] * 3), _table("b.csv", label=[0, 1] * 3)),
        "x",
        "several tables",
    ),
    "parquet of structs of no images": (
        _parquet_of_structs,
        "x/t.parquet",
        "none of the 4 images looked at can be read",
    ),
}


@pytest.mark.slow
def test_parquet_of_paths_and_labels_in_a_cell() -> None:
    _parquet_of_paths()
    assert init("x").data.path == "x/t.parquet"  # type: ignore[attr-defined]
    shutil.rmtree("x")
    _table(count=30, tags=["a", "b", "a|b", "a", "", "a|b"] * 5)
    recipe = init("x", "--overwrite")
    assert type(recipe.task).__name__ == "MultiLabel"
    assert recipe.data.label_column == "tags"  # type: ignore[attr-defined]
    assert "Column 'tags': labels separated by '|' (5 images without one)" in _unwrapped(Path("recipe.py").read_text())
    assert main(["plan", "recipe.py"]) == 0


@pytest.mark.slow
def test_the_user_names_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    names = images(Path("x"), 40)
    columns = {"image": names, "radius": [n % 5 for n in range(40)], "sick": [n % 2 for n in range(40)]}
    written_csv(Path("x/t.csv"), columns | {"old": [n % 3 % 2 for n in range(40)]})  # type: ignore[arg-type]
    chosen = {
        ("--label", "radius"): ("Classification", "radius"),
        ("--label", "radius", "--task", "regression"): ("Regression", "radius"),
        ("--task", "regression"): ("Regression", ("radius", "sick", "old")),
        ("--task", "multilabel"): ("MultiLabel", ("sick", "old")),
        ("--label", "sick", "--label", "old"): ("MultiLabel", ("sick", "old")),
        ("--label", "sick", "--task", "classification"): ("Classification", "sick"),
    }
    for options, (task, label) in chosen.items():
        recipe = init("x", "--overwrite", *options)
        assert (type(recipe.task).__name__, recipe.data.label_column) == (task, label), options  # type: ignore[attr-defined]
        assert f"init x {' '.join(options)}" in Path("recipe.py").read_text()
    assert "--label radios: x/t.csv has no such column; did you mean 'radius'?" in refused(
        "x", capsys, "--overwrite", "--label", "radios"
    )
    images(Path("y/a"), 2)
    images(Path("y/b"), 2)
    assert "holds class folders, which give one class per image" in refused("y", capsys, "--overwrite", "--label", "a")


def test_what_is_the_same_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    for split, label in ((split, label) for split in ("training_set", "dev") for label in ("Red", "red", "blue")):
        images(Path("x", split, label), 2)
    assert init("x").data.root == "x"  # type: ignore[attr-defined]
    text = _unwrapped(Path("recipe.py").read_text())
    assert "6 to validate on: dev/." in text
    assert "6 of 6 validation images are training images, too (the same file content)" in text
    assert "'Red' and 'red' count as different" in text


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, source, said = MISTAKES[mistake]
    make()
    assert said in refused(source, capsys)


def test_both_problems_are_reported_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "no/such/place", "--to", "recipe.txt"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


@pytest.mark.slow
def test_broken_images_are_counted_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("a", "b"):
        images(Path("pets", label), 10)
    Path("pets/a/3.png").write_bytes(b"\x89PNG nothing more")
    text = _unwrapped(_written("pets"))
    assert 'on_bad_image="skip"' in text
    assert "Of 20 looked at 1 cannot be read" in text
    assert "1 cannot be read: pets/a/3.png" in " ".join(
        capsys.readouterr().out.replace(str(Path.cwd()) + "/", "").split()
    )
    assert main(["plan", "recipe.py", *SHORT]) == 0


@pytest.mark.slow
def test_starts_without_torch(tmp_path: Path) -> None:
    for label in ("a", "b"):
        images(Path("pets", label), 3)
    written_csv(Path("table/t.csv"), {"path": images(Path("table"), 6), "label": ["a", "b"] * 3})
    show = "print([name for name in ('torch', 'torchvision', 'timm', 'datasets', 'pandas') if name in sys.modules])"
    start = (
        "import sys\nfrom launcher.cli import main\nfor x in ('pets', 'table'):\n    main(['init', x, '--overwrite'])"
    )
    source = f"{start}\n{show}"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stdout.count("written: recipe.py") == 2


def found(counts: Sequence[int] = (50, 50), kind: Any = "class", names: Sequence[str] = ("ant", "bee")) -> DataFindings:
    """Data of so many images of each class, label or, in sum, with numbers."""
    from launcher.data.sources import ArrayImages
    from launcher.recipe.protocols import Split, Splits

    total = sum(counts)
    targets: Any = np.repeat(np.arange(len(counts)), counts)
    if kind == "labels":
        targets = (targets[:, None] == np.arange(len(counts))).astype(np.float32)
    elif kind == "values":
        targets = np.linspace(0, 9, total * len(names), dtype=np.float32).reshape(total, len(names))
    split = Split(ArrayImages("x", np.zeros((total, 2, 2), np.uint8)), targets)
    splits = Splits(split, split, tuple(names))
    return DataFindings(
        title="x", part="ImageFolder", fields={"root": "x"}, target_kind=kind, splits=splits, validation="val/"
    )


def decided(data: DataFindings, machine: Machine = GPU, shortest: int = 500) -> dict[str, Any]:
    images = ImageFindings(10, (), shortest, shortest, shortest, True)
    return {decision.field: decision.value for decision in decide(data, images, machine)}


def plan_of(data: DataFindings, machine: Machine = GPU) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name.removeprefix("phases."), dict(call.fields)) for call in decided(data, machine)["freeze_plan"]]


def test_the_plan_goes_by_images_of_a_class() -> None:
    assert [name for name, _ in plan_of(found((19, 19)))] == ["linear_probe"]
    scales = [plan_of(found((each, each)))[1][1]["backbone_lr_scale"] for each in (20, 199, 200, 999, 1000)]
    assert scales == [0.03, 0.03, 0.1, 0.1, 0.3]
    epochs = [plan_of(found((100, 100)), where)[1][1]["epochs"] for where in (GPU, CPU)]
    assert epochs == [20, 5]
    large = [plan_of(found((50_000, 50_000)), where)[1][1]["epochs"] for where in (GPU, CPU)]
    assert large == [5, 2]
    assert decided(found((19, 19)))["cache_views"] == 4
    assert "cache_views" not in decided(found((20, 20)))
    # Where augmentation stays out there is one view of each image.
    assert "cache_views" not in decided(found((19,), "values", ["steering_angle"]))
    assert decided(found((19,), "values", ["age"]))["cache_views"] == 4
    numbers = plan_of(found((300,), "values", ["age"]))
    assert numbers[1][1]["backbone_lr_scale"] == 0.1
    assert [name for name, _ in plan_of(found((150,), "values", ["age"]))] == ["linear_probe"]


@pytest.mark.slow
def test_batches_divide_well_and_are_never_more_than_the_images() -> None:
    for count in range(1, 300):
        for where in (CPU, GPU):
            batch = decided(found((count, 1)), where)["batch_size"]
            assert batch <= count + 1
            assert batch & (batch - 1) == 0
    assert decided(found((500, 500)))["batch_size"] == 64
    assert decided(found((500, 500)), CPU)["batch_size"] == 32
    assert decided(found((500, 500)), dataclasses.replace(GPU, gpus=3))["batch_size"] == 63
    assert decided(found((500, 500)), dataclasses.replace(GPU, gpus=8))["batch_size"] == 64


def test_uneven_classes_are_weighted_and_judged_by_macro_f1() -> None:
    def of(counts: Sequence[int]) -> tuple[Any, Any]:
        data = found(counts)
        return decided(data)["task"].fields.get("class_weights"), plan_of(data)[0][1].get("monitor")

    assert of((100, 299)) == (None, None)
    assert of((100, 300)) == ("balanced", "macro_f1")
    assert of((3, 3000)) == (None, "macro_f1")


def test_small_pictures_are_not_enlarged() -> None:
    assert [image_size_for(side) for side in (8, 32, 64, 65, 96, 100, 192, 193, 224, 500)] == [
        *(64, 64, 64, 96, 96, 128, 192, None, None, None)
    ]


def test_mirror_images_and_crops_stay_out_where_they_change_targets() -> None:
    def fields(*names: str, kind: str = "class") -> dict[str, Any]:
        return dict(decided(found((30,) * len(names), kind, names))["augment"].fields)

    assert fields("left_turn", "right_turn") == {"min_scale": 0.5, "flip": False}
    assert fields(*"0123456789")["flip"] is False
    assert "flip" not in fields("0", "1")
    assert "flip" not in fields("leftover", "bright")
    assert fields("steering_angle", kind="values") == {"preset": "none"}
    assert fields("x1", "y1", kind="values") == {"preset": "none"}
    assert fields("age", kind="values") == {"min_scale": 0.8}


def test_networks_suit_the_machine_and_what_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "LITE0_FILE", "models/nothing.pth")
    small, large = dataclasses.replace(GPU, gpu_gigabytes=4.0), GPU
    cases = [(100, CPU), (100_000, CPU), (100, small), (100, large), (100_000, large)]
    names = [choose(count, where).network.name for count, where in cases]
    assert names == ["efficientnet_b0", "mobilenet_v3_large", "resnet50", "convnext_tiny", "convnext_small"]
    assert all(choose(count, where).on_disk is None for count, where in cases)
    file = tmp_path / "torch/hub/checkpoints" / RESNET50.file
    file.parent.mkdir(parents=True)
    file.touch()
    assert choose(100, large).network is RESNET50
    assert choose(100, large).on_disk == file
    assert choose(100, CPU).on_disk is None  # too slow there, on disk or not
    cached = tmp_path / "hub/models--timm--convnext_tiny.in12k_ft_in1k/snapshots/abc/model.safetensors"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert choose(100, large).on_disk == cached


def test_weights_that_are_not_here_are_named_and_said_to_be_downloaded() -> None:
    for label in ("a", "b"):
        images(Path("pets", label), 3)
    recipe: Any = init("pets", "--for", "gpu")
    assert recipe.backbone.name == "convnext_tiny"
    assert recipe.backbone.weights == "IMAGENET1K_V1"
    assert recipe.mixed_precision == "auto"
    assert "init pets --for gpu" in Path("recipe.py").read_text()
    assert "its weights (109 MB) are downloaded at the first start" in _unwrapped(Path("recipe.py").read_text())


def test_what_is_known_of_networks_is_what_their_libraries_say() -> None:
    import timm
    import torchvision

    known = [value for value in vars(networks).values() if isinstance(value, networks.Network)]
    assert len(known) > 5
    for network in known:
        if network.part == "Torchvision":
            weights = torchvision.models.get_model_weights(network.name)[network.weights]
            assert weights.url.endswith(f"/{network.file}")
            assert round(weights.meta["_file_size"]) == network.megabytes
            assert round(weights.meta["_ops"], 1) == network.gflops
            assert weights.transforms().crop_size == [224]
        elif network.file != LITE0:
            config = timm.models.get_pretrained_cfg(f"{network.name}.{network.weights}")
            assert config.hf_hub_id == network.file
            assert config.input_size[-1] == 224


@pytest.mark.slow
def test_the_machine_is_asked_as_cuda_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'NVIDIA A100, 40960'\necho 'NVIDIA A100, 40960'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert machine().gpus == 0  # CUDA_VISIBLE_DEVICES is empty
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert str(machine()).startswith("2 x NVIDIA A100 with 40 GB")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine().gpus == 1
    assert machine("cpu").gpus == 0
    program.write_text("#!/bin/sh\necho 'no devices were found'; exit 9\n")
    assert machine().gpus == 0
    assert machine("gpu").gpus == 1


def test_columns_and_what_they_are_taken_for() -> None:
    def of(**columns: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        found = targets_in([text_column(name, cells) for name, cells in columns.items()], "t.csv")
        return found.kind, found.columns

    words, numbers, codes = ["a", "b"] * 20, [f"{n}.5" for n in range(40)], [str(n % 3) for n in range(40)]
    bits, ages = ["0", "1"] * 20, [str(20 + n) for n in range(40)]
    assert of(breed=words, weight=numbers) == ("class", ("breed",))
    assert of(code=codes) == ("class", ("code",))
    assert of(age=ages) == ("values", ("age",))
    assert of(age=ages, weight=numbers) == ("values", ("weight",))
    assert of(sick=bits) == ("class", ("sick",))
    assert of(sick=["0.0", "1.0"] * 20) == ("class", ("sick",))
    assert of(code=[f"{code}.0" for code in codes], weight=numbers) == ("class", ("code",))
    assert of(sick=bits, old=bits[::-1], breed=words) == ("labels", ("sick", "old"))
    assert of(label=words, sick=bits, old=bits) == ("class", ("label",))
    assert of(breed=words, target=numbers) == ("values", ("target",))
    assert of(id=codes, flag=bits, other=["True", "False"] * 20) == ("labels", ("flag", "other"))
    assert not looks_like_lists({"tench, Tinca tinca", "goldfish, Carassius auratus"})
    assert looks_like_lists({"cat", "dog", "cat;dog"})
    assert looks_like_lists({"['cat']", "['cat', 'dog']"})
    with pytest.raises(UserError, match="no column looks like a target"):
        of(caption=[f"photo {n}" for n in range(40)])
    several = [typed_column(name, [0, 1, 2] * 5, "names") for name in ("coarse", "fine")]
    chosen = targets_in(several, "x")
    assert (chosen.columns, chosen.remark) == (("coarse",), "not used: fine (classes, 3 different)")


@pytest.mark.slow
def test_every_recipe_that_can_come_out_is_formatted() -> None:
    wide = tuple(f"attribute_number_{n}" for n in range(30))
    cases = [
        found((19, 19)),
        found((100, 600)),
        found((2000, 2000, 2000), names=("ant", "bee", "fly")),
        dataclasses.replace(
            found((300,) * 30, "labels", wide), part="CsvImages", fields={"path": "x" * 100, "label_column": wide}
        ),
        found((500,), "values", ["weight"]),
    ]
    for number, data in enumerate(cases):
        for where in (CPU, GPU, dataclasses.replace(GPU, gpus=8)):
            for shortest in (8, 500):
                images = ImageFindings(200, ("x/1.png (empty)",), shortest, shortest, shortest, False)
                text = recipe_text(decide(data, images, where), "For x.", f"recipe_{number}.py", ["x"], where.start())
                Path(f"recipe_{number}_{where.gpus}_{shortest}.py").write_text(text)
                compile(text, "recipe.py", "exec")
                longest = max(
                    len(line) for line in text.splitlines() if "weights=" not in line and "x" * 90 not in line
                )
                assert longest <= 88
    assert is_formatted(Path())


@pytest.mark.slow
def test_next_commands_use_all_gpus(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'NVIDIA A100, 40960'\necho 'NVIDIA A100, 40960'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    for label in ("a", "b"):
        images(Path("pets", label), 3)
    init("pets", "--to", "my recipe.py")
    command = capsys.readouterr().out.splitlines()[-1]
    words = ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "-m", "launcher", "my recipe.py"]
    assert shlex.split(command) == words
    assert f"    {command.strip()}\n" in Path("my recipe.py").read_text()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    init("pets", "--to", "one.py")
    assert capsys.readouterr().out.splitlines()[-1] == "  python -m launcher one.py"
    assert "    python -m launcher one.py\n" in Path("one.py").read_text()
