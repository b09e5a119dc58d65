"""CSV files: classes, labels, numbers, splits, and everything that can be wrong with them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from launcher.data import CsvImages, HuggingFace
from launcher.errors import UserError
from launcher.recipe.protocols import Data, Splits, TargetKind


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, img/0.png to img/9.png."""
    (tmp_path / "img").mkdir()
    for index in range(10):
        Image.new("RGB", (8, 6), (index, 0, 0)).save(tmp_path / "img" / f"{index}.png")
    return tmp_path


def write(path: Path, header: str, *rows: str) -> str:
    path.write_text("\n".join([header, *rows, ""]))
    return str(path)


def ten(path: Path, header: str, cells: list[str]) -> str:
    return write(path, f"path,{header}", *(f"img/{index}.png,{cell}" for index, cell in enumerate(cells)))


def error_of(kind: TargetKind = "class", **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        CsvImages(**fields).build(kind, seed=0)
    return str(caught.value)


def rows_of(splits: Splits) -> tuple[list[int], list[int]]:
    """The number in each image's file name and, checked against it, in its pixels."""
    found = []
    for split in (splits.train, splits.val):
        numbers = [int(Path(split.images.name(index)).stem) for index in range(len(split))]
        assert [np.asarray(split.images.read(index))[0, 0, 0] for index in range(len(split))] == numbers
        found.append(numbers)
    return found[0], found[1]


def test_classes_in_text(folder: Path) -> None:
    file = ten(folder / "a.csv", "label", ["dog", "cat"] * 5)
    part = CsvImages(path=file)
    assert isinstance(part, Data)
    splits = part.build("class", seed=0)
    assert splits.names == ("cat", "dog")
    train, val = rows_of(splits)
    assert sorted(train + val) == list(range(10))
    assert splits.val.targets.tolist() == [(row + 1) % 2 for row in val]
    assert sorted(splits.val.targets) == [0, 1]
    assert splits.train.targets.dtype == np.int64


def test_classes_in_numbers_are_ordered_as_numbers(folder: Path) -> None:
    splits = CsvImages(path=ten(folder / "a.csv", "label", ["10", "2"] * 5)).build("class", seed=0)
    assert splits.names == ("2", "10")


def test_split_column(folder: Path) -> None:
    cells = [f"{label},{split}" for label, split in zip("aabbaabbcc", ["train"] * 4 + ["val"] * 4 + ["test"] * 2)]  # noqa: B905
    splits = CsvImages(path=ten(folder / "a.csv", "label,part", cells), split_column="part").build("class", seed=0)
    assert rows_of(splits) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert splits.names == ("a", "b"), "the class of a test row is not one"


def test_val_file_with_paths_from_its_own_folder(folder: Path) -> None:
    train = ten(folder / "train.csv", "label", ["a", "b"] * 5)
    val = write(folder / "img" / "val.csv", "path,label", "3.png,b", f"{folder}/img/4.png,a")
    splits = CsvImages(path=train, val_path=val).build("class", seed=0)
    assert rows_of(splits)[1] == [3, 4]
    assert splits.val.targets.tolist() == [1, 0]


def test_root_columns_tabs_and_excel(folder: Path) -> None:
    (folder / "tables").mkdir()
    lines = ["name\tkind", *(f'"{index}.png"\tk{index % 2}' for index in range(10)), "", ""]
    (folder / "tables" / "a.tsv").write_text("\r\n".join(lines), encoding="utf-8-sig")
    splits = CsvImages(
        path=str(folder / "tables" / "a.tsv"), root=str(folder / "img"), image_column="name", label_column="kind"
    ).build("class", seed=0)
    assert splits.names == ("k0", "k1")
    assert len(splits.train) == 8


def test_several_labels(folder: Path) -> None:
    cells = [f"{index % 2},{'True' if index % 3 == 0 else 'false'}" for index in range(10)]
    file = ten(folder / "a.csv", "red,round", cells)
    splits = CsvImages(path=file, label_column=("red", "round")).build("labels", seed=0)
    assert splits.names == ("red", "round")
    assert splits.train.targets.dtype == np.float32
    for split, rows in zip((splits.train, splits.val), rows_of(splits), strict=True):
        assert split.targets.tolist() == [[row % 2, row % 3 == 0] for row in rows]


def test_no_header(folder: Path) -> None:
    file = folder / "a.csv"
    file.write_text("".join(f"{index % 2},img/{index}.png\n" for index in range(10)))
    for fields in ({}, {"image_column": "img/0.png", "label_column": "0"}):
        reported = error_of(path=str(file), **fields)  # type: ignore[arg-type]
        assert "a.csv has no header: its first line names the image 'img/0.png'" in reported
    header = error_of(path=str(file)).rpartition("such as ")[2]
    file.write_text(f"{header}\n{file.read_text()}")
    assert CsvImages(path=str(file)).build("class", seed=0).names == ("0", "1"), "the advice works"


def test_labels_that_only_look_like_numbers(folder: Path) -> None:
    splits = CsvImages(path=ten(folder / "a.csv", "label", ["--1", "3"] * 5)).build("class", seed=0)
    assert splits.names == ("--1", "3")


def test_rows_of_one_image_and_of_one_group_stay_on_one_side(folder: Path) -> None:
    rows = [(index, "ab"[index % 2]) for index in range(10) for _ in range(3)]
    file = write(folder / "a.csv", "path,label", *(f"{'./' * (n % 2)}img/{i}.png,{c}" for n, (i, c) in enumerate(rows)))
    splits = CsvImages(path=file).build("class", seed=0)
    train, val = rows_of(splits)
    assert not set(train) & set(val)
    assert (len(train), len(val), sorted(splits.val.targets.tolist())) == (24, 6, [0, 0, 0, 1, 1, 1])
    assert splits.notes == (f"10 images stand in several rows of {file} (30 rows): img/0.png in lines 2, 3, 4",)
    file = ten(folder / "b.csv", "patient,label", [f"{index // 2},{'ab'[index % 2]}" for index in range(10)])
    for kind in ("class", "values"):
        column = "label" if kind == "class" else "patient"
        splits = CsvImages(path=file, label_column=column, group_column="patient").build(kind, seed=3)
        train, val = rows_of(splits)
        assert not {index // 2 for index in train} & {index // 2 for index in val}
        assert len(val) == 2
    assert "give one of them" in error_of(path=file, group_column="patient", val_path=file)
    assert "of one group" in error_of(path=ten(folder / "c.csv", "g,label", ["x,a", "x,b"] * 5), group_column="g")


def test_names_in_any_unicode_form(folder: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (folder / "img" / "0.png").rename(folder / "img" / f"{decomposed}.png")
    rows = [
        f"img/{composed}.png,{composed}",
        *(f"img/{n}.png,{(composed, decomposed, 'b')[n % 3]}" for n in range(1, 10)),
    ]
    file = write(folder / "a.csv", f"path,{decomposed}", *rows)
    splits = CsvImages(path=file, label_column=composed).build("class", seed=0)
    assert splits.names == ("b", composed)
    names = [split.images.name(n) for split in (splits.train, splits.val) for n in range(len(split))]
    assert f"{folder}/img/{decomposed}.png" in names, "files keep the bytes of their names"


def test_values(folder: Path) -> None:
    file = ten(folder / "a.csv", "x,y", [f"{index / 4},-{index}e1" for index in range(10)])
    splits = CsvImages(path=file, label_column=("y", "x")).build("values", seed=0)
    for split, rows in zip((splits.train, splits.val), rows_of(splits), strict=True):
        assert split.targets.tolist() == [[-10.0 * row, row / 4] for row in rows]
    one = CsvImages(path=file, label_column="x").build("values", seed=0)
    assert (one.names, one.train.targets.shape) == (("x",), (8, 1))


def test_missing_file_and_columns(folder: Path) -> None:
    assert error_of(path=str(folder / "b.csv")) == f"data.path: no file {folder}/b.csv"
    assert "cannot read" in error_of(path=str(folder))
    file = ten(folder / "a.csv", "labels", ["a"] * 10)
    assert error_of(path=file) == f"data.path: {file} has no column 'label'; did you mean 'labels'?"
    both = error_of(path=file, image_column="file").splitlines()
    assert len(both) == 2
    assert both[0].endswith("has no column 'file'; there are: path, labels")
    assert "has several columns 'path'" in error_of(path=write(folder / "c.csv", "path,path,label", "a,b,c"))
    assert "separated by commas" in error_of(path=write(folder / "d.csv", "path;label", "img/0.png;a"))
    assert "no rows below its header" in error_of(path=write(folder / "e.csv", "path,label"))
    (folder / "f.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    assert "not text in UTF-8" in error_of(path=str(folder / "f.csv"))


def test_missing_images_are_counted_and_named(folder: Path) -> None:
    file = write(
        folder / "a.csv", "path,label", "img/0.png,a", *(f"{name},b" for name in ("x.png", "no/y.png", "z", "w"))
    )
    assert error_of(path=file) == (
        f"data.path: 4 of 5 images named in {file} are missing: x.png (line 3), no/y.png (line 4), "
        f"z (line 5) and 1 more; looked in {folder}; data.root says where the paths start from"
    )


def test_rows_that_are_not_whole(folder: Path) -> None:
    file = write(folder / "a.csv", "path,label", "img/0.png,a", "img/1.png,a,b")
    assert "line 3: 3 cells, but the header has 2" in error_of(path=file)
    file = write(folder / "b.csv", "path,label", "img/0.png,a", "img/1.png,")
    assert "has 1 empty cell(s): 'label' in line 3" in error_of(path=file)


def test_cells_that_are_not_targets(folder: Path) -> None:
    cells = ["1,0.5", "2,x", "0,nan", "yes,1e999", *["1,1"] * 6]
    file = ten(folder / "a.csv", "red,size", cells)
    assert error_of("values", path=file, label_column=("red", "size")).splitlines() == [
        f"data.path: {file}: column 'red' has 1 cell that should be a finite number: line 5: 'yes'",
        f"data.path: {file}: column 'size' has 3 cells that should be a finite number: line 3: 'x', "
        "line 4: 'nan', line 5: '1e999'",
    ]
    assert "column 'red' has 2 cells that should be 0 or 1: line 3: '2', line 5: 'yes'" in error_of(
        "labels", path=file, label_column="red"
    )


def test_class_from_several_columns(folder: Path) -> None:
    file = ten(folder / "a.csv", "x,y", ["1,1"] * 10)
    assert "2 columns (x, y), but a class is read from one" in error_of(path=file, label_column=("x", "y"))


def test_wrong_splits(folder: Path) -> None:
    file = ten(folder / "a.csv", "label,part", ["a,train"] * 8 + ["a,later", "a,val"])
    assert "'part' should say train, val or test, but says 'later' in line 10" in error_of(
        path=file, split_column="part"
    )
    file = ten(folder / "b.csv", "label,part", ["a,train"] * 10)
    assert "says 'val' in column 'part'" in error_of(path=file, split_column="part")
    assert "give one of them" in error_of(path=file, split_column="part", val_path=file)


def test_unknown_class_in_val(folder: Path) -> None:
    train = ten(folder / "a.csv", "label", ["a", "b"] * 5)
    val = ten(folder / "b.csv", "label", ["a", "b", "c", "d"] + ["a"] * 6)
    assert error_of(path=train, val_path=val) == (
        f"data.val_path: {val}: 2 classes not among the training images: 'c', 'd'; known are 'a', 'b'"
    )


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.csv")
    file = ten(folder / "a.csv", "label", ["dog", "cat"] * 5)
    assert error_of(path=str(folder / "pipe.csv")) == (
        f"data.path: cannot read {folder}/pipe.csv: a named pipe, not a file"
    )
    assert "a named pipe, not a file" in error_of(path=file, val_path=str(folder / "pipe.csv"))


@pytest.mark.parametrize(
    ("columns", "reported"), [((), "should name a column"), ("", "should name a column"), (("y", "y"), "names y twice")]
)
def test_names_of_columns(columns: Any, reported: str) -> None:
    for part in (CsvImages, HuggingFace):
        with pytest.raises(ValidationError, match=reported):
            part(path="a.csv", label_column=columns)


def test_whole_numbers_beyond_float64_are_reported(folder: Path) -> None:
    file = ten(folder / "a.csv", "y", [str(2**53 + index) for index in range(10)])
    assert error_of("values", path=file, label_column="y") == (
        f"data.path: {file}: column 'y' has 5 whole numbers that float64 cannot hold exactly (above 2^53): line 3: "
        f"'{2**53 + 1}', line 5: '{2**53 + 3}', line 7: '{2**53 + 5}' and 2 more; subtract what they have in common"
    )
    for huge in (2**64 + 1, -(2**70) - 1, 10**300 + 1):
        assert "10 whole numbers" in error_of(
            "values", path=ten(folder / "c.csv", "y", [str(huge)] * 10), label_column="y"
        )
    file = ten(folder / "b.csv", "y", [str(2**60 + 2**20 * index) for index in range(10)])
    values = CsvImages(path=file, label_column="y").build("values", seed=0)
    assert {int(value) for split in (values.train, values.val) for value in split.targets[:, 0]} == {
        2**60 + 2**20 * index for index in range(10)
    }


def test_a_class_of_thousands_of_digits_is_text(folder: Path) -> None:
    splits = CsvImages(path=ten(folder / "a.csv", "label", ["1" * 5000, "2"] * 5)).build("class", seed=0)
    assert splits.names == ("1" * 5000, "2")


def test_an_image_must_have_a_label(folder: Path) -> None:
    file = ten(folder / "a.csv", "label", ["[]"] * 10)
    assert error_of("labels", path=file).startswith(f"data.path: {file}: no image has a label (column 'label'")
