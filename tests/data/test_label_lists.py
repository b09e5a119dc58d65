"""Several labels for an image: every way of writing the same labels gives the same targets, or is refused."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from launcher.data import CsvImages
from launcher.data.arrow_columns import ImageTable
from launcher.errors import UserError

WORDS = ("ant", "bee", "caf\u00e9", "dog's", "polar bear")

WAYS_IN_TEXT = {
    "bars": "|".join,
    "semicolons": "; ".join,
    "commas": ", ".join,
    "JSON": json.dumps,
    "Python": repr,
    "numpy": lambda labels: f"[{' '.join(map(repr, labels))}]",
    "plain brackets": lambda labels: f"[{', '.join(labels)}]",
}
POSITIONS_IN_TEXT = {
    "JSON": json.dumps,
    "floats": lambda row: json.dumps(list(map(float, row))),
    "Booleans": lambda row: repr(list(map(bool, row))),
    "numpy": lambda row: str(np.asarray(row)),
    "numpy's floats": lambda row: str(np.asarray(row, dtype=float)),
    "spaces": lambda row: " ".join(map(str, row)),
    "commas": lambda row: ",".join(map(str, row)),
    "bars": lambda row: "|".join(map(str, row)),
}


def from_csv(folder: Path, columns: dict[str, list[str]], label: str | tuple[str, ...]) -> npt.NDArray[Any]:
    """The targets of all rows, in the order of the file."""
    count = len(next(iter(columns.values())))
    for row in range(count):
        if not (folder / f"{row}.png").exists():
            Image.new("RGB", (2, 2), (row, 0, 0)).save(folder / f"{row}.png")
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *columns])
        writer.writerows(zip([f"{row}.png" for row in range(count)], *columns.values(), strict=True))
    splits = CsvImages(path=str(folder / "a.csv"), label_column=label).build("labels", seed=0)
    targets = np.zeros((count, len(splits.names)), dtype=np.float32)
    for split in (splits.train, splits.val):
        for index in range(len(split)):
            targets[int(Path(split.images.name(index)).stem)] = split.targets[index]
    return targets


def from_table(cells: list[Any], inner: Any) -> npt.NDArray[Any]:
    features = datasets.Features({"image": datasets.Value("binary"), "tags": datasets.List(inner)})
    table = datasets.Dataset.from_dict({"image": [b"x"] * len(cells), "tags": cells}, features)
    read = ImageTable("table", table, "labels", None, None)
    return read.targets(read.names)


@st.composite
def label_matrices(draw: st.DrawFn) -> npt.NDArray[np.int64]:
    """0 and 1, (images, labels), each label on an image at least."""
    labels = draw(st.integers(2, len(WORDS)))
    rows = draw(st.lists(st.lists(st.integers(0, 1), min_size=labels, max_size=labels), min_size=2, max_size=6))
    rows += np.eye(labels, dtype=int).tolist()[: draw(st.integers(0, labels))]
    matrix = np.asarray(rows)
    matrix[0, matrix.sum(axis=0) == 0] = 1
    return matrix


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(label_matrices())
@example(np.asarray([[0, 1], [1, 0]]))
@example(np.asarray([[1, 1], [1, 1]]))
@example(np.asarray([[1, 0, 1], [0, 1, 0]]))
def test_every_way_of_writing_labels_gives_the_same_targets(matrix: npt.NDArray[np.int64]) -> None:
    names = WORDS[: matrix.shape[1]]
    words = [[name for name, there in zip(names, row, strict=True) if there] for row in matrix]
    ids = [np.flatnonzero(row).tolist() for row in matrix]
    rows = matrix.tolist()
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        columns = {name: [str(cell) for cell in matrix[:, place]] for place, name in enumerate(names)}
        assert from_csv(folder, columns, names).tolist() == rows
        for way, write in WAYS_IN_TEXT.items():
            cells = [write(labels) if labels else "" for labels in words]  # type: ignore[no-untyped-call]
            assert from_csv(folder, {"tags": cells}, "tags").tolist() == rows, way
        read = {
            f"positions in text: {way}": lambda write=write: from_csv(folder, {"tags": list(map(write, rows))}, "tags")
            for way, write in POSITIONS_IN_TEXT.items()
        }
        text, integer = datasets.Value("string"), datasets.Value("int64")
        assert from_table(words, text).tolist() == rows
        assert from_table(ids, datasets.ClassLabel(names=list(names))).tolist() == rows
        read |= {
            "ids": lambda: from_table(ids, integer),  # type: ignore[dict-item, misc]
            "ids in text": lambda: from_csv(folder, {"tags": [json.dumps(row) for row in ids]}, "tags"),  # type: ignore[dict-item, misc]
            "positions": lambda: from_table(rows, integer),  # type: ignore[dict-item, misc]
            "positions as Booleans": lambda: from_table(matrix.astype(bool).tolist(), datasets.Value("bool")),  # type: ignore[dict-item, misc]
            "positions as floats": lambda: from_table(matrix.astype(float).tolist(), datasets.Value("float32")),  # type: ignore[dict-item, misc]
        }
        for way, targets in read.items():
            reported = ""
            try:
                assert targets().tolist() == rows, way  # type: ignore[no-untyped-call]
            except UserError as error:
                reported = str(error)
            if reported:  # pairs of 0 and 1 alone, such as [0, 1], may be both labels or the second of two
                assert "may be ids of labels or a 0 or 1 for each label" in reported, way
                assert set(map(len, rows if way.startswith("positions") else ids)) <= {1, 2}, way


@pytest.mark.parametrize(
    ("cells", "reported"),
    [
        (["[0, 1]", "[1, 0]", "[0, 1]"], "may be ids of labels or a 0 or 1 for each label; write the labels as words"),
        (["[0]", "[1]", "[1]"], "may be ids of labels"),
        (["[1, 0, 1]", "[1, 0]", "[]"], "zeros and ones of different lengths, in which a value comes twice: [1, 0, 1]"),
        (
            ["[1, 0, 2]", "[0, 1, 0]", "[2, 1, 0]"],
            "with values above 1, in which a value comes twice: [0, 1, 0] (line 3)",
        ),
        (["[0.5, 1, 0]", "[1, 1, 0]", "[1, 1, 0]"], "should say 0 or 1 for each label, or name labels"),
        (["a|b", "a,b", "c"], "has '|', commas in its cells, so what separates labels is unclear"),
        (["['a', 'b']", "a", "['b']"], "has lists in brackets, but line 3 says 'a'"),
        (["['a', 'b'", "['b']", "['b']"], "has lists in brackets, but line 2"),
        (['[["a"], ["b"]]', "['b']", "['b']"], "lists within lists"),
        (["['a' b]", "['b']", "['b']"], "1 cell(s) that are no list: line 2"),
        (["[null]", "['b']", "['b']"], "no label in 'tags': line 2"),
        (["1", "0", "yes"], "should be 0 or 1: line 4: 'yes'"),
        (["1", "", "0"], "should be 0 or 1: line 3: ''"),
    ],
)
def test_what_has_no_single_meaning_is_refused(tmp_path: Path, cells: list[str], reported: str) -> None:
    with pytest.raises(UserError) as caught:
        from_csv(tmp_path, {"tags": cells}, "tags")
    assert reported in str(caught.value)


def test_how_labels_are_read_is_reported_and_the_validation_file_is_read_alike(tmp_path: Path) -> None:
    from_csv(tmp_path, {"tags": ["[1, 0, 1]", "[0, 0, 1]", "[1, 1, 0]", "[0, 0, 0]"]}, "tags")
    train = (tmp_path / "a.csv").rename(tmp_path / "train.csv")
    splits = CsvImages(path=str(train), label_column="tags").build("labels", seed=0)
    assert splits.notes == ("column 'tags': each list of 3 zeros and ones is read by position, a label for each",)
    assert splits.names == ("0", "1", "2")
    val = tmp_path / "val.csv"
    part = CsvImages(path=str(train), val_path=str(val), label_column="tags")
    val.write_text('path,tags\n0.png,"[0, 1]"\n')
    with pytest.raises(UserError, match="lists of 2 zeros and ones, but there are 3 labels"):
        part.build("labels", seed=0)
    val.write_text('path,tags\n0.png,"[0, 2]"\n')
    with pytest.raises(UserError, match="read in another way than in the training images"):
        part.build("labels", seed=0)
    val.write_text('path,tags\n0.png,"[0, 1, 1]"\n')
    both = part.build("labels", seed=0)
    assert both.val.targets.tolist() == [[0, 1, 1]]
    words = from_csv(tmp_path, {"tags": ["red", "", "blue", "red"]}, "tags")
    assert words.tolist() == [[0, 1], [0, 0], [1, 0], [0, 1]]
