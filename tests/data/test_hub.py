"""Data sets that `datasets` reads: local forms, columns, and the hub out of reach."""

from __future__ import annotations

import io
import pickle
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from launcher.data import HuggingFace, ImageFolder
from launcher.data import hub as hub_module
from launcher.data.arrow_columns import ImageTable
from launcher.data.image_check import find_broken, verified
from launcher.errors import UserError
from launcher.recipe.protocols import Data, Split, Splits, TargetKind


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `datasets` writes goes below the test's own folder; the hub is not asked."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def table(features: dict[str, Any], count: int = 10, first: int = 0, **columns: list[Any]) -> datasets.Dataset:
    """A data set whose image in row i is of the colour first + i."""
    pictures = [{"bytes": png(first + row), "path": f"{row}.png"} for row in range(count)]
    return datasets.Dataset.from_dict(
        {"image": pictures, **columns}, datasets.Features({"image": datasets.Image(), **features})
    )


ANIMALS = datasets.ClassLabel(names=["zebra", "ant", "bee"])
TEXT, INT, FLOAT = datasets.Value("string"), datasets.Value("int64"), datasets.Value("float32")


def animals(count: int = 10, first: int = 0) -> datasets.Dataset:
    return table({"label": ANIMALS}, count, first, label=[row % 3 for row in range(count)])


def saved(folder: Path, dataset: datasets.Dataset | datasets.DatasetDict) -> str:
    dataset.save_to_disk(str(folder))
    return str(folder)


def build(path: str | Path, kind: TargetKind = "class", **fields: Any) -> Splits:
    return HuggingFace(path=str(path), **fields).build(kind, seed=0)


def error_of(path: str | Path, kind: TargetKind = "class", **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(path, kind, **fields)
    assert all("\n" not in problem for problem in caught.value.problems)
    return str(caught.value)


def colours(split: Split) -> list[int]:
    return [int(np.asarray(split.images.read(index))[0, 0, 0]) for index in range(len(split))]


def check_animals(splits: Splits, train: int, val: int) -> None:
    assert splits.names == ("zebra", "ant", "bee"), "in the column's own order"
    assert (len(splits.train), len(splits.val)) == (train, val)
    for split in (splits.train, splits.val):
        assert split.targets.dtype == np.int64
        assert split.targets.tolist() == [colour % 3 for colour in colours(split)]


def test_folder_saved_to_disk(tmp_path: Path) -> None:
    path = saved(tmp_path / "one", animals())
    check_animals(build(path), train=7, val=3)
    assert isinstance(HuggingFace(path=path), Data)
    dictionary = datasets.DatasetDict(train=animals(), validation=animals(6, first=60), test=animals(3))
    path = saved(tmp_path / "several", dictionary)
    check_animals(build(path), train=10, val=6)
    check_animals(build(path, val_split="test"), train=10, val=3)
    check_animals(pickle.loads(pickle.dumps(build(path))), train=10, val=6)  # noqa: S301 - workers get it so
    assert build(path).val.images.name(2) == f"{path}:validation[2] (2.png)"


def test_without_validation_the_test_split_stays_unseen(tmp_path: Path) -> None:
    path = saved(tmp_path / "data", datasets.DatasetDict(train=animals(), test=animals(6, first=60)))
    splits = build(path)
    check_animals(splits, train=7, val=3)
    assert max(colours(splits.train) + colours(splits.val)) < 60


def test_parquet_and_arrow(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    animals().to_parquet(folder / "train-00000-of-00001.parquet")
    animals(6, first=60).to_parquet(folder / "validation-00000-of-00001.parquet")
    check_animals(build(tmp_path / "hub"), train=10, val=6)
    check_animals(build(folder / "train-00000-of-00001.parquet"), train=7, val=3)
    saved(tmp_path / "saved", animals())
    check_animals(build(tmp_path / "saved" / "data-00000-of-00001.arrow"), train=7, val=3)


def test_class_folders_are_read_as_by_image_folder(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("b", "a"):
            (tmp_path / "x" / split / name).mkdir(parents=True)
            for index in range(3):
                (tmp_path / "x" / split / name / f"{index}.png").write_bytes(png(index))
    for root in (tmp_path / "x", tmp_path / "x" / "train"):
        ours, theirs = build(root), ImageFolder(root=str(root)).build("class", seed=0)
        assert ours.names == theirs.names == ("a", "b")
        for split in ("train", "val"):
            mine, other = getattr(ours, split), getattr(theirs, split)
            assert mine.targets.tolist() == other.targets.tolist()
            assert [mine.images.name(i) for i in range(len(mine))] == [other.images.name(i) for i in range(len(other))]
    assert len(build(tmp_path / "x", val_split="validation").val) == 6
    assert "has no folder 'test'" in error_of(tmp_path / "x", val_split="test")
    assert "gives one class per image" in error_of(tmp_path / "x", "values")


def test_labels_in_text_and_numbers(tmp_path: Path) -> None:
    text = table({"kind": TEXT}, kind=["b", "a"] * 5)
    val = table({"kind": TEXT}, 2, first=60, kind=["b", "b"])
    splits = build(saved(tmp_path / "text", datasets.DatasetDict(train=text, val=val)))
    assert splits.names == ("a", "b")
    assert splits.val.targets.tolist() == [1, 1]
    numbers = table({"kind": INT}, kind=[10, 2] * 5)
    assert build(saved(tmp_path / "numbers", numbers)).names == ("2", "10")
    unknown = datasets.DatasetDict(train=text, val=table({"kind": TEXT}, 2, kind=["b", "c"]))
    path = saved(tmp_path / "unknown", unknown)
    assert error_of(path) == (
        f"{path}:val: 1 class not among the training images: 'c'; known are 'a', 'b'; "
        "data.val_split=train sets a part of the training split aside instead"
    )


def test_images_in_plain_bytes(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_dict(
        {"jpg": [png(row) for row in range(10)], "cls": [row % 2 for row in range(10)]}
    )
    dataset.to_parquet(tmp_path / "a.parquet")
    splits = build(tmp_path / "a.parquet")
    assert splits.train.targets.tolist() == [colour % 2 for colour in colours(splits.train)]


@pytest.mark.parametrize("named", [True, False])
def test_lists_of_labels(tmp_path: Path, named: bool) -> None:
    inner = datasets.ClassLabel(names=["z", "y", "x"]) if named else TEXT
    cells: list[list[Any]] = [[], [0], [0, 2], [1]] if named else [[], ["z"], ["z", "x"], ["y"]]
    dataset = table({"tags": datasets.List(inner)}, 4, tags=cells)
    path = saved(tmp_path / "a", datasets.DatasetDict(train=dataset, val=dataset))
    splits = build(path, "labels")
    assert splits.names == (("z", "y", "x") if named else ("x", "y", "z"))
    assert splits.val.targets.dtype == np.float32
    matrix = splits.val.targets[:, [splits.names.index(name) for name in "zyx"]]
    assert matrix.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_columns_of_labels_and_values(tmp_path: Path) -> None:
    dataset = table(
        {"red": INT, "big": datasets.Value("bool"), "size": FLOAT},
        red=[row % 2 for row in range(10)],
        big=[row > 4 for row in range(10)],
        size=[row / 2 for row in range(10)],
    )
    path = saved(tmp_path / "a", dataset)
    labels = build(path, "labels", label_column=("red", "big"))
    assert labels.names == ("red", "big")
    assert labels.train.targets.tolist() == [[colour % 2, colour > 4] for colour in colours(labels.train)]
    values = build(path, "values")
    assert (values.names, values.train.targets.dtype) == (("size",), np.float64)  # type: ignore[comparison-overlap]  # until they are normalised
    assert values.train.targets.tolist() == [[colour / 2] for colour in colours(values.train)]
    assert build(path, "values", label_column=("size", "red")).val.targets.shape == (2, 2)


def test_unclear_and_unknown_columns_list_what_there_is(tmp_path: Path) -> None:
    dataset = table({"label": ANIMALS, "colour": ANIMALS, "id": TEXT}, 3, label=[0, 1, 2], colour=[0] * 3, id=["a"] * 3)
    path = saved(tmp_path / "a", dataset)
    columns = "image (image), label (3 classes), colour (3 classes), id (string)"
    assert error_of(path) == (
        f"data.label_column: several columns of {path}:train could be one class per image; "
        f"name one of its columns: {columns}"
    )
    assert build(path, label_column="colour", val_fraction=0.4).names == ("zebra", "ant", "bee")
    assert error_of(path, label_column="labels").endswith("has no column 'labels'; did you mean 'label'?")
    assert "column 'id'" in (message := error_of(path, "values", label_column="id"))
    assert message.endswith(f"cannot be read as numbers per image: {columns}")
    assert "no column" in error_of(path, "labels")
    assert "data.image_column: 3 of 3 images named in column 'id'" in error_of(
        path, image_column="id", label_column="label"
    )
    no_images = datasets.Dataset.from_dict({"label": [0, 1]})
    assert "looks like images" in error_of(saved(tmp_path / "b", no_images))


def test_missing_labels_and_values_are_named_by_row(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", table({"label": ANIMALS}, 4, label=[0, -1, None, 1]))
    assert error_of(path).endswith("2 images have no label in 'label': row 1, row 2")
    path = saved(tmp_path / "b", table({"size": FLOAT}, 4, size=[0.0, None, 1.0, float("nan")]))
    assert "2 cells that should be a finite number: row 1: None, row 3: nan" in error_of(path, "values")
    path = saved(tmp_path / "c", table({"tags": datasets.List(TEXT)}, 3, tags=[["a"], None, ["b", None]]))
    assert error_of(path, "labels").endswith("2 images have no label in 'tags': row 1, row 2")


def test_wrong_splits(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", datasets.DatasetDict(train=animals(), test=animals()))
    assert error_of(path, val_split="tests").endswith("has no split 'tests'; did you mean 'test'?")
    assert "has no split 'trian'; did you mean 'train'?" in error_of(path, train_split="trian")


def test_a_validation_split_without_labels_is_done_without(tmp_path: Path) -> None:
    unlabelled = table({"label": ANIMALS}, label=[-1] * 10)
    path = saved(tmp_path / "a", datasets.DatasetDict(train=animals(20), validation=unlabelled))
    reported = error_of(path)
    assert "10 images have no label in 'label'" in reported
    assert reported.endswith("; data.val_split=train sets a part of the training split aside instead")
    check_animals(build(path, val_split="train"), 17, 3)


def test_dev_is_for_validation_where_there_is_no_other(tmp_path: Path) -> None:
    splits = datasets.DatasetDict(train=animals(6), dev=animals(3, first=30), test=animals(1))
    check_animals(build(saved(tmp_path / "a", splits)), 6, 3)


def test_structs_of_bytes_and_path_as_pandas_and_pyarrow_write_them(tmp_path: Path) -> None:
    rows = [{"bytes": png(row), "path": f"{row}.png"} for row in range(10)]
    frame = pd.DataFrame({"image": rows, "label": [f"{row % 2}" for row in range(10)]})
    frame.to_parquet(tmp_path / "a.parquet")
    splits = build(tmp_path / "a.parquet")
    assert splits.train.targets.tolist() == [colour % 2 for colour in colours(splits.train)]
    assert splits.train.images.encoded(0) == png(colours(splits.train)[0])  # type: ignore[attr-defined]
    named = build(tmp_path / "a.parquet", image_column="image")
    assert colours(named.val) == colours(splits.val)


@pytest.mark.parametrize("as_struct", [True, False])
def test_paths_in_a_parquet_start_from_its_folder(tmp_path: Path, as_struct: bool) -> None:
    (tmp_path / "img").mkdir()
    for row in range(10):
        (tmp_path / "img" / f"{row}.png").write_bytes(png(row))
    names = [f"img/{row}.png" for row in range(10)]
    cells: list[Any] = [{"bytes": None, "path": name} for name in names] if as_struct else names
    schema = pa.schema(
        {"file": pa.struct({"bytes": pa.binary(), "path": pa.string()}) if as_struct else pa.string(), "y": pa.int64()}
    )
    columns = {"file": cells, "y": [row % 2 for row in range(10)]}
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "a.parquet")
    splits = build(tmp_path / "a.parquet")
    assert splits.train.targets.tolist() == [colour % 2 for colour in colours(splits.train)]
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "a.parquet", tmp_path / "other" / "a.parquet")
    moved = build(tmp_path / "other" / "a.parquet", root=str(tmp_path)) if not as_struct else None
    assert moved is None or colours(moved.val) == colours(splits.val)
    if not as_struct:
        assert "10 of 10 images named in column 'file'" in error_of(tmp_path / "other" / "a.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["set [v1]", "a*b", "what?"])
def test_paths_with_characters_of_patterns(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    animals(9).to_parquet(folder / "train-0.parquet")
    animals(3, first=30).to_parquet(folder / "validation.parquet")
    check_animals(build(folder), 9, 3)
    check_animals(build(folder / "train-0.parquet", val_fraction=0.34), 6, 3)
    check_animals(build(saved(folder / "saved", datasets.DatasetDict(train=animals(6), val=animals(3)))), 6, 3)


def test_classes_stored_as_numbers_with_a_point(tmp_path: Path) -> None:
    pd.DataFrame({"image": [png(row) for row in range(10)], "label": [float(row % 2) for row in range(10)]}).to_parquet(
        tmp_path / "a.parquet"
    )
    splits = build(tmp_path / "a.parquet")
    assert splits.names == ("0", "1")
    assert splits.train.targets.tolist() == [colour % 2 for colour in colours(splits.train)]
    pd.DataFrame({"image": [png(1)] * 4, "label": [0.5, 1.0, 0.5, 1.0]}).to_parquet(tmp_path / "b.parquet")
    assert "numbers with fractions (0.5), which are no classes" in error_of(tmp_path / "b.parquet")


def test_groups_stay_on_one_side(tmp_path: Path) -> None:
    dataset = table(
        {"label": ANIMALS, "patient": TEXT},
        40,
        label=[r % 3 for r in range(40)],
        patient=[f"{r // 4}" for r in range(40)],
    )
    path = saved(tmp_path / "a", dataset)
    splits = build(path, group_column="patient")
    assert not {c // 4 for c in colours(splits.train)} & {c // 4 for c in colours(splits.val)}
    assert len(splits.val) == 8
    assert "did you mean 'patient'" in error_of(path, group_column="patients")


def test_a_column_of_splits_is_reported(tmp_path: Path) -> None:
    dataset = table({"label": ANIMALS, "split": TEXT}, label=[r % 3 for r in range(10)], split=["train", "val"] * 5)
    path = saved(tmp_path / "a", dataset)
    assert "column 'split' says train, val and is not used" in build(path).notes[0]


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    for path in (tmp_path / "a.parquet", tmp_path):
        assert "a git-lfs pointer, not the file itself; run git lfs pull" in error_of(path)


def test_an_empty_split(tmp_path: Path) -> None:
    animals().select([]).to_parquet(tmp_path / "a.parquet")
    assert "a.parquet cannot be read" in error_of(tmp_path / "a.parquet"), "datasets itself reads no empty file"
    with pytest.raises(UserError, match=r"^data: pets:val has no rows$"):
        ImageTable("pets:val", animals().select([]), "class", None, None)


def test_broken_rows_are_named(tmp_path: Path) -> None:
    pictures = [
        {"bytes": png(1)[:40], "path": "x.png"},
        {"bytes": b"", "path": None},
        *[{"bytes": png(1), "path": None}] * 2,
    ]
    features = datasets.Features({"image": datasets.Image(), "label": TEXT})
    dataset = datasets.Dataset.from_dict({"image": pictures, "label": ["a"] * 4}, features)
    path = saved(tmp_path / "a", datasets.DatasetDict(train=dataset, val=dataset.select([2])))
    splits = build(path)
    broken = find_broken(splits)
    assert [index for index, _ in broken.train] == [0, 1]
    kept = verified(splits, broken, "skip")
    assert len(kept.train) == 2
    assert kept.skipped[0].startswith(f"{path}:train[0] (x.png) (")
    assert kept.skipped[1] == f"{path}:train[1] (empty)"


def test_local_paths_that_are_not_there_or_not_data(tmp_path: Path) -> None:
    for path in (f"{tmp_path}/none", "./none", "a/b/c", "pets.parquet"):
        assert error_of(path).startswith("data.path: no folder or file /")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    assert "a.parquet cannot be read" in error_of(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("path,label")
    assert "a CSV file of paths is read by data.CsvImages" in error_of(tmp_path / "a.csv")
    assert "no name of the hub looks so" in error_of("my photos")


def test_a_hub_name_out_of_reach(cache: Path) -> None:
    message = error_of("someone/pets")
    assert message.startswith(
        "data.path: data set 'someone/pets' is not on this machine, and the hub cannot be reached "
        f"(HF_HUB_OFFLINE is set); looked for a folder {Path.cwd()}/someone/pets and in the cache {cache}; "
        "give a local folder of images"
    )
    assert "recipes/digits.py" in message


def test_a_hub_that_refuses_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real connection, refused: one attempt, where `datasets` by itself would make six over 23 s."""
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: real(endpoint="http://127.0.0.1:9"))
    assert "the hub cannot be reached ([Errno" in error_of("someone/pets")
    assert not datasets.config.HF_HUB_OFFLINE, "as it was"


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    import huggingface_hub

    released = threading.Event()

    class Waiting:
        def dataset_info(self, *args: object, **kwargs: object) -> None:
            released.wait()

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Waiting)
    monkeypatch.setattr(hub_module, "_ANSWER_SECONDS", 0.1)
    assert "no answer within 0.1 s" in error_of("someone/pets")
    released.set()


def test_out_of_reach_but_in_the_cache(tmp_path: Path, cache: Path) -> None:
    """A cache folder, as brought from a machine with network."""
    animals(9).to_parquet(tmp_path / "train.parquet")
    datasets.load_dataset("parquet", data_files={"train": str(tmp_path / "train.parquet")})
    (written,) = (cache / "parquet").glob("*/0.0.0/*/")
    (cache / "someone___pets" / "default" / "0.0.0").mkdir(parents=True)
    target = cache / "someone___pets" / "default" / "0.0.0" / written.name
    shutil.move(written, target)
    for file in target.glob("parquet-*.arrow"):
        file.rename(file.with_name(file.name.replace("parquet-", "pets-")))
    check_animals(build("someone/pets"), train=6, val=3)
