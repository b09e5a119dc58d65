"""CSV files of image paths and targets."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from launcher.assets.bundle import OwnPath
from launcher.data.csv_rows import read_cells
from launcher.data.decoding import SUFFIXES
from launcher.data.folder import PathText, own_paths
from launcher.data.label_lists import LabelLists, cells_are_lists, lists_in_cells
from launcher.data.names import nfc, split_named
from launcher.data.sources import FileImages, Subset, check_files, missing_files
from launcher.data.split import set_aside
from launcher.data.targets import Columns, class_indices, class_names, column_names, numbers
from launcher.errors import Problems, UserError, did_you_mean
from launcher.files import expanded
from launcher.recipe.part import part
from launcher.recipe.protocols import Split, Splits, TargetKind
from launcher.text import listed, one_line, plural


@part
class CsvImages:
    """Images whose paths a CSV file lists (with a header; comma-separated, tabs in `.tsv`), with targets beside them.

    For "class", `label_column` is one column of class names or numbers (sorted as numbers if all are integers, else as
    text); for "labels", one column of 0 and 1 per label, or one column of lists ("cat|dog", "['cat', 'dog']",
    "[1, 0, 1]"; an empty cell means an image without a label); for "values", one column of numbers per target. Classes
    come from the training rows. Rows of the split "test" are not trained on. If a fraction is set aside for validation,
    rows with the same image stay on one side.
    """

    path: PathText
    image_column: str = "path"
    label_column: Columns = "label"
    root: PathText | None = None
    """Folder that the paths are relative to; None: the folder of the CSV file."""
    val_path: PathText | None = None
    """Second file, with the validation images."""
    test_path: PathText | None = None
    """Another file, with the test images; None: the rows whose `split_column` says "test", if there are any. Read by
    `evaluate --split test` alone."""
    split_column: str | None = None
    """Column that says "train", "val" or "test" for each image."""
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Fraction set aside for validation if neither `val_path` nor `split_column` is given."""
    group_column: str | None = None
    """Column whose equal values (a patient, a camera) stay on one side if a fraction is set aside."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """Treatment of images that cannot be decoded: stop the run before training starts, or leave them out and list
    them."""

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        """Read the splits, as `protocols.Data` describes.

        Raises UserError for missing files and columns, and for cells that are not targets.
        """
        columns = column_names(self.label_column)
        problems = Problems()
        if target_kind == "class" and len(columns) != 1:
            problems.found.append(
                f"data.label_column: {len(columns)} columns ({listed(columns)}), but a class is read from one; "
                "for several labels per image use tasks.MultiLabel"
            )
        if self.val_path and self.split_column:
            problems.found.append("data: val_path and split_column both say what is for validation; give one of them")
        if self.group_column and (self.val_path or self.split_column):
            problems.found.append(
                "data.group_column: says what stays together where a fraction is set aside, but "
                f"{'val_path' if self.val_path else 'split_column'} says what is for validation; give one of them"
            )
        for field, path in (("data.path", self.path), ("data.val_path", self.val_path)):
            if self.test_path and path and expanded(path).resolve() == expanded(self.test_path).resolve():
                problems.found.append(f"data.test_path: is the file of {field}, too; name another")
        problems.raise_if_any()

        tables = []
        for field, path, others in (
            ("data.path", self.path, (self.split_column, self.group_column)),
            ("data.val_path", self.val_path, (None, None)),
        ):
            if path is not None:
                with problems.collected():
                    tables.append(_Table(self, field, path, target_kind, *others))
        problems.raise_if_any()

        train, val_rows = tables[0], None
        lists = train.label_lists()
        val_lists = tables[-1].label_lists(lists) if lists and len(tables) > 1 else lists
        notes = [*([lists.note] if lists else []), *train.notes()]
        if self.split_column:
            train_rows, val_rows = train.rows_of("train"), train.rows_of("val")
        else:
            train_rows = np.arange(len(train.lines), dtype=np.int64)
            val_rows = np.arange(len(tables[1].lines), dtype=np.int64) if self.val_path else None
        if target_kind == "class":
            labels = train.columns[0]
            names = class_names(labels[row] for row in train_rows)
        else:
            names = lists.names(train_rows.tolist()) if lists else columns
        with problems.collected():
            train_split = train.split(train_rows, names, target_kind, lists)
        if val_rows is not None:
            with problems.collected():
                val_split = tables[-1].split(val_rows, names, target_kind, val_lists)
        problems.raise_if_any()
        if val_rows is None:
            groups = train.groups()
            splits = set_aside(train_split.images, train_split.targets, names, self.val_fraction, seed, groups=groups)
            return dataclasses.replace(splits, notes=tuple(notes))
        return Splits(train_split, val_split, names, notes=tuple(notes))

    def test_images(self, target_kind: TargetKind, names: tuple[str, ...]) -> Split | None:
        """Return the test images, or None if there are none; `names` come from the training rows.

        Raises UserError as `build` does, and for targets that are not among `names`.
        """
        if self.test_path is not None:
            return self.other_images("data.test_path", self.test_path, target_kind, names)
        if self.split_column is None:
            return None
        table = _Table(self, "data.path", self.path, target_kind, self.split_column)
        rows = table.rows_of("test", may_be_none=True)
        return table.split(rows, names, target_kind, table.label_lists()) if len(rows) else None

    def other_images(self, field: str, path: str, target_kind: TargetKind, names: tuple[str, ...]) -> Split:
        """Return all images of another file with the same columns; `names` and errors are as in `test_images`."""
        table = _Table(self, field, path, target_kind)
        like = None
        if target_kind == "labels":
            with contextlib.suppress(UserError):  # the training rows may be absent when other images are evaluated
                like = _Table(self, "data.path", self.path, target_kind).label_lists()
        return table.split(np.arange(len(table.lines)), names, target_kind, table.label_lists(like))

    def assets(self) -> list[OwnPath]:
        """Return its files and folders: the user's own, which stay where they are."""
        return own_paths(path=self.path, val_path=self.val_path, test_path=self.test_path, root=self.root)


class _Table:
    """The columns in use of one file, after a check that every row is complete and every image exists."""

    def __init__(
        self,
        data: CsvImages,
        field: str,
        path: str,
        target_kind: TargetKind,
        split_column: str | None = None,
        group_column: str | None = None,
    ) -> None:
        self._field = field
        self._file = expanded(path).absolute()
        self._root = expanded(data.root).absolute() if data.root else self._file.parent
        self._image_column, self._split_column = data.image_column, split_column
        self._label_columns = column_names(data.label_column)
        may_be_lists = target_kind == "labels" and len(self._label_columns) == 1
        named = [self._image_column, *self._label_columns, split_column, group_column]
        used = list(dict.fromkeys(filter(None, named)))
        cells, self.lines = self._read(used, may_be_empty=self._label_columns[0] if may_be_lists else None)
        self._splits, self._groups = cells.get(split_column or "", []), cells.get(group_column or "")
        self.columns = [list(map(nfc, cells[name])) for name in self._label_columns]
        self._has_lists = may_be_lists and cells_are_lists(self.columns[0])
        self._paths = cells[self._image_column]
        advice = "" if data.root else "; data.root says where the paths start from"
        check_files(self._root, self._paths, field, str(self._file), self._row_name, advice)

    def label_lists(self, like: LabelLists | None = None) -> LabelLists | None:
        """Return the labels if each cell holds several, else None; `like` is how the training images' are read."""
        if not self._has_lists and like is None:
            return None
        where, column = f"{self._field}: {self._file}", self._label_columns[0]
        return lists_in_cells(self.columns[0], column, where, self._row_name, like)

    def _row_name(self, row: int) -> str:
        return f"line {self.lines[row]}"

    def groups(self) -> list[str] | None:
        """Return for each row the group that must stay on one side, or None if every row is on its own.

        Without a group column, rows with the same image are a group.
        """
        if self._groups is not None:
            return self._groups
        same = [os.path.normpath(path) for path in self._paths]
        return same if len(set(same)) < len(same) else None

    def notes(self) -> list[str]:
        """Return a line about images that several rows name, if there are any."""
        rows_of: dict[str, list[int]] = {}
        for row, path in enumerate(self._paths):
            rows_of.setdefault(os.path.normpath(path), []).append(row)
        repeated = {path: rows for path, rows in rows_of.items() if len(rows) > 1}
        if not repeated:
            return []
        path, rows = next(iter(repeated.items()))
        lines = listed([str(self.lines[row]) for row in rows])
        return [
            f"{plural(len(repeated), 'image stands', 'images stand')} in several rows of {one_line(str(self._file))} "
            f"({sum(map(len, repeated.values())):,} rows): {one_line(path)} in lines {lines}"
        ]

    def _read(self, used: Sequence[str], may_be_empty: str | None) -> tuple[dict[str, list[str]], list[int]]:
        cells: dict[str, list[str]] = {name: [] for name in used}
        lines: list[int] = []
        rows = read_cells(self._file, self._field)
        _, header = next(rows)
        self._check_header(header, list(map(nfc, used)))
        places = [(cells[name], header.index(nfc(name))) for name in cells]
        for line, row in rows:
            lines.append(line)
            for column, place in places:
                column.append(row[place])
        if not lines:
            raise UserError(f"{self._field}: {self._file} has no rows below its header")
        checked = [name for name in cells if name != may_be_empty]
        empty = [(name, line) for name in checked for cell, line in zip(cells[name], lines, strict=True) if not cell]
        if empty:
            shown = listed([f"{name!r} in line {line}" for name, line in empty])
            raise UserError(f"{self._field}: {self._file} has {len(empty)} empty cell(s): {shown}")
        return cells, lines

    def _check_header(self, header: list[str], used: Sequence[str]) -> None:
        first = next((cell for cell in header if _names_an_image(self._root, cell)), None)
        if first is not None:
            raise UserError(
                f"{self._field}: {self._file} has no header: its first line names the image {first!r}; put a line with "
                f"the names of the columns above it, such as {','.join(self._names_for(header, used))}"
            )
        absent = [name for name in used if name not in header]
        if len(header) == 1 and absent and any(mark in header[0] for mark in ";\t|"):
            raise UserError(
                f"{self._field}: {self._file} has one column, {header[0]!r}; "
                "columns are separated by commas (tabs in a .tsv file)"
            )
        twice = sorted({name for name in used if header.count(name) > 1})
        where = f"{self._field}: {self._file}"
        problems = [f"{where} has no column {name!r}{did_you_mean(name, header)}" for name in absent]
        problems += [f"{where} has several columns {name!r}" for name in twice]
        if problems:
            raise UserError(*problems)

    def _names_for(self, header: list[str], used: Sequence[str]) -> list[str]:
        """Return names for the columns of a file without a header, among them those that the recipe uses."""
        others = (name for name in used if name != nfc(self._image_column))
        return [
            self._image_column if _names_an_image(self._root, cell) else next(others, f"column_{place}")
            for place, cell in enumerate(header)
        ]

    def rows_of(self, split: str, *, may_be_none: bool = False) -> npt.NDArray[np.int64]:
        """Return the rows that the split column assigns to `split`: "train", "val" or "test"."""
        splits = list(map(split_named, self._splits))
        odd = [row for row, name in enumerate(splits) if name is None]
        if odd:
            shown = listed([f"{self._splits[row]!r} in line {self.lines[row]}" for row in odd])
            raise UserError(
                f"data.split_column: {self._split_column!r} should say train, val or test, but says {shown}"
            )
        rows = np.asarray([row for row, name in enumerate(splits) if name == split], dtype=np.int64)
        if not len(rows) and not may_be_none:
            raise UserError(
                f"data.split_column: no row of {self._file} says {split!r} in column {self._split_column!r}"
            )
        return rows

    def split(
        self, rows: npt.NDArray[np.int64], names: tuple[str, ...], target_kind: TargetKind, lists: LabelLists | None
    ) -> Split:
        chosen: list[Sequence[Any]] = [[column[row] for row in rows] for column in self.columns]
        targets: npt.NDArray[Any]
        where = f"{self._field}: {self._file}"
        if lists is not None:
            targets = lists.matrix(names, rows.tolist())
        elif target_kind == "class":
            targets = class_indices(chosen[0], names, where)
        else:
            targets = numbers(chosen, names, target_kind, where, lambda row: f"line {self.lines[rows[row]]}")
        return Split(Subset(FileImages(self._root, self._paths), rows), targets)


def _names_an_image(root: Path, cell: str) -> bool:
    """Return whether a cell of the first line is the path of an image that exists."""
    if Path(cell).suffix.lower() not in SUFFIXES or "\0" in cell:
        return False
    return bool(cell) and not missing_files(root, [cell])
