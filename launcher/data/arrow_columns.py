"""Columns of an Arrow table that hold images and targets, found by their types or given by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from launcher.data.decoding import SUFFIXES
from launcher.data.label_lists import LabelLists, cells_are_lists, lists_in_cells, lists_in_rows
from launcher.data.names import in_list, nfc, split_named
from launcher.data.sources import FileImages, TableImages, check_files
from launcher.data.targets import MEANING, class_indices, class_names, numbers
from launcher.errors import UserError, did_you_mean
from launcher.recipe.protocols import ImageSource, TargetKind
from launcher.text import listed, plural

if TYPE_CHECKING:
    import datasets

Array = npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.float64]


class ImageTable:
    """One split of a data set: its images as stored (never decoded by `datasets`) and its targets."""

    def __init__(
        self,
        title: str,
        table: datasets.Dataset,
        target_kind: TargetKind,
        image_column: str | None,
        label_columns: tuple[str, ...] | None,
        root: Path | None = None,
    ) -> None:
        """Find and check the columns.

        `root` is the folder that the paths of images are relative to, or None for a data set of the hub.
        """
        import datasets

        self._title, self._root = title, root
        self._target_kind = target_kind
        if not len(table):
            raise UserError(f"data: {title} has no rows")
        self._features: dict[str, Any] = dict(table.features)
        self._table = table
        image_column = self._image_column(image_column)
        if isinstance(self._features[image_column], datasets.Image):
            table = table.cast_column(image_column, datasets.Image(decode=False))
        self.images = self._images(table, image_column)
        self._columns = self._label_columns(image_column, label_columns)
        cells = table.select_columns(list(self._columns))[:]
        self._cells: list[Sequence[Any]] = [cells[name] for name in self._columns]

    def targets(self, names: tuple[str, ...], like: ImageTable | None = None) -> Array:
        """Return targets as in `protocols.Split` for `names`, which come from the training split (`like`).

        Raises UserError for targets that are not among `names`, are missing, or are not numbers.
        """
        column = self._cells[0]
        if self._target_kind == "class":
            return class_indices(self._texts(column, range(len(column))), names, self._title)
        if (like or self)._has_lists():
            return self._lists(like).matrix(names)
        return numbers(self._cells, self._columns, self._target_kind, self._title, _row_name)

    def notes(self) -> list[str]:
        """Return a line on how label lists are read, and a line on each column that assigns rows to splits."""
        notes = [self._lists().note] if self._target_kind == "labels" and self._has_lists() else []
        for name, feature in self._features.items():
            if name.lower() in ("split", "set", "subset", "partition") and "string" in _dtype(feature):
                words = {str(word) for word in self._table.unique(name)}
                if len(words) > 1 and all(map(split_named, words)):
                    notes.append(
                        f"{self._title}: column {name!r} says {listed(sorted(words))} and is not used: rows of all of "
                        "them train; save each split as a file of its own (train.parquet, validation.parquet) in one "
                        "folder"
                    )
        return notes

    def groups(self, column: str) -> list[str]:
        """Return the cells of a column as text. Raises UserError if there is no such column."""
        self._check_named("group_column", [column], lambda feature: True, "groups")
        actual = in_list(column, list(self._features)) or column
        return [str(cell) for cell in self._table[actual][:]]

    def _images(self, table: datasets.Dataset, column: str) -> ImageSource:
        if "string" not in _dtype(self._features[column]):
            return TableImages(self._title, table, column, self._root)
        paths = [str(path) for path in table[column][:]]
        root = self._root or Path()
        check_files(root, paths, "data.image_column", f"column {column!r} of {self._title}", _row_name)
        return FileImages(root, paths)

    def _has_lists(self) -> bool:
        """Return whether the column holds several labels per cell: lists, or text that is not a number."""
        feature = self._features[self._columns[0]]
        if _is_list(feature):
            return True
        text = "string" in _dtype(feature)
        return text and self._target_kind == "labels" and cells_are_lists([str(cell or "") for cell in self._cells[0]])

    def _lists(self, like: ImageTable | None = None) -> LabelLists:
        column, name = self._cells[0], self._columns[0]
        of_training = like._lists() if like is not None else None
        names = self._given_names()
        if not _is_list(self._features[name]):
            cells = [nfc(str(cell or "").strip()) for cell in column]
            return lists_in_cells(cells, name, self._title, _row_name, of_training)
        if names is None:
            return lists_in_rows(column, name, self._title, _row_name, of_training)
        # By their type these are ids; only zeros and ones, one for each class, can be nothing but positions.
        if _are_positions(column, len(names)):
            each = plural(len(names), "zero or one", "zeros and ones")
            note = f"column {name!r}: each list of {each} is read by position"
            rows = [[str(int(label)) for label in labels] for labels in column]
            return LabelLists(self._title, rows, _row_name, "positions", note)
        labels, rows_of = _flat(column)
        texts: list[list[str]] = [[] for _ in column]
        for row, text in zip(rows_of, self._texts(labels, rows_of), strict=True):
            texts[row].append(text)
        return LabelLists(self._title, texts, _row_name, "names", f"column {name!r}: labels in lists")

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, derived from this split alone. Raises UserError as `targets` does."""
        if self._target_kind == "values" or (self._target_kind == "labels" and not self._has_lists()):
            return self._columns
        names = self._given_names()
        if names is not None:
            return names
        if self._target_kind == "labels":
            return self._lists().names()
        return class_names(self._texts(self._cells[0], range(len(self._cells[0]))))

    def _texts(self, labels: Sequence[Any], rows: Sequence[int]) -> list[str]:
        """Return labels as names. Raises UserError for missing ones: None, or -1 if the column lists its classes."""
        names = self._given_names()
        missing = [
            row
            for row, label in zip(rows, labels, strict=True)
            if label is None or label != label or (names is not None and not 0 <= label < len(names))
        ]
        if missing:
            shown = listed([f"row {row}" for row in missing])
            raise UserError(
                f"data: {self._title}: {plural(len(missing), 'image has', 'images have', spec='')} no label in "
                f"{self._columns[0]!r}: {shown}"
            )
        if names is not None:
            return [names[label] for label in labels]
        return [self._text(label) for label in labels]

    def _text(self, label: Any) -> str:
        if not isinstance(label, float):
            return nfc(str(label))
        if not label.is_integer():
            raise UserError(
                f"data: {self._title}: column {self._columns[0]!r} has numbers with fractions ({label:g}), which are "
                "no classes; for numbers to predict use tasks.Regression"
            )
        return str(int(label))

    def _given_names(self) -> tuple[str, ...] | None:
        """Return the names that the column's type (ClassLabel) lists, in its order, or None."""
        feature = self._features[self._columns[0]]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        return tuple(map(nfc, names)) if names is not None else None

    def _image_column(self, named: str | None) -> str:
        if named is not None:
            self._check_named("image_column", [named], self._may_be_images, "images")
            return in_list(named, list(self._features)) or named
        columns = [name for name, feature in self._features.items() if type(feature).__name__ == "Image"]
        columns = columns or [name for name, feature in self._features.items() if is_image(feature)]
        columns = columns or [name for name in self._features if self._names_images(name)]
        return self._only("image_column", columns, "images")

    def _may_be_images(self, feature: Any) -> bool:
        return is_image(feature) or (self._root is not None and "string" in _dtype(feature))

    def _names_images(self, column: str) -> bool:
        """Return whether a column of text holds paths: its first 20 cells end in the suffixes of image files."""
        if self._root is None or "string" not in _dtype(self._features[column]):
            return False
        cells = self._table[column][:20]
        return all(isinstance(cell, str) and Path(cell).suffix.lower() in SUFFIXES for cell in cells)

    def _label_columns(self, image_column: str, named: tuple[str, ...] | None) -> tuple[str, ...]:
        kind = self._target_kind
        if named is not None:
            if len(named) != 1 and kind == "class":
                raise UserError(f"data.label_column: {len(named)} columns, but a class is read from one")
            fits: Callable[[Any], bool] = {
                "class": _is_class,
                "labels": lambda feature: (
                    _is_number(feature) or (len(named) == 1 and (_is_list(feature) or "string" in _dtype(feature)))
                ),
                "values": _is_number,
            }[kind]
            self._check_named("label_column", named, fits, MEANING[kind])
            return tuple(in_list(name, list(self._features)) or name for name in named)
        others = {
            name: feature
            for name, feature in self._features.items()
            if name != image_column and not (is_image(feature) or isinstance(feature, dict))
        }
        # The first test that any column passes decides: a column that lists its classes precedes numbers and text.
        tests: dict[TargetKind, list[Callable[[Any], bool]]] = {
            "class": [
                lambda feature: hasattr(feature, "names"),
                lambda feature: _is_class(feature) and not _dtype(feature).startswith("float"),
                _is_class,
            ],
            "labels": [_is_list],
            "values": [lambda feature: _dtype(feature).startswith("float"), _is_number],
        }
        fitting: list[str] = []
        for test in tests[kind]:
            fitting = fitting or [name for name, feature in others.items() if test(feature)]
        return (self._only("label_column", fitting, MEANING[kind]),)

    def _check_named(self, field: str, named: Sequence[str], fits: Callable[[Any], bool], what: str) -> None:
        problems = []
        for name in named:
            actual = in_list(name, list(self._features))
            if actual is None:
                hint = did_you_mean(name, list(self._features))
                problems.append(f"data.{field}: {self._title} has no column {name!r}{hint}")
            elif not fits(self._features[actual]):
                problems.append(
                    f"data.{field}: column {name!r} of {self._title} cannot be read as {what}: {self._shown()}"
                )
        if problems:
            raise UserError(*problems)

    def _only(self, field: str, names: Sequence[str], what: str) -> str:
        if len(names) != 1:
            which = f"several columns of {self._title} could be" if names else f"no column of {self._title} looks like"
            if not names and self._root is None and field == "image_column":
                what += " (paths of files can only be read from a table on this disk)"
            raise UserError(f"data.{field}: {which} {what}; name one of its columns: {self._shown()}")
        return names[0]

    def _shown(self) -> str:
        return ", ".join(f"{name} ({_described(feature)})" for name, feature in self._features.items())


def _flat(column: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Return the labels of all lists one after another, and the row of each. A missing list is one missing label."""
    pairs = [(label, row) for row, cell in enumerate(column) for label in ([None] if cell is None else cell)]
    return [label for label, _ in pairs], [row for _, row in pairs]


def _dtype(feature: Any) -> str:
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else ""


def is_image(feature: Any) -> bool:
    """Return whether a column's type is that of images.

    These are Image, bytes, and a struct of bytes with or without a path, as pandas and pyarrow write images.
    """
    if isinstance(feature, dict):
        types = {name: _dtype(inner) for name, inner in feature.items()}
        return types.get("bytes", "").endswith("binary") and set(types) <= {"bytes", "path"}
    return type(feature).__name__ == "Image" or _dtype(feature).endswith("binary")


def _row_name(row: int) -> str:
    return f"row {row}"


def _are_positions(rows: Sequence[Any], count: int) -> bool:
    """Return whether lists hold a 0 or 1 for each of `count` classes: a value that occurs twice cannot be an id."""
    binary = all(row is not None and len(row) == count and set(row) <= {0, 1} for row in rows)
    return binary and any(len(set(row)) < count for row in rows)


def _is_list(feature: Any) -> bool:
    return hasattr(feature, "feature") and not isinstance(feature.feature, dict)


def _is_class(feature: Any) -> bool:
    return _is_number(feature) or "string" in _dtype(feature)


def _is_number(feature: Any) -> bool:
    return hasattr(feature, "names") or _dtype(feature).startswith(("int", "uint", "float", "bool"))


def _described(feature: Any) -> str:
    if hasattr(feature, "names"):
        return plural(len(feature.names), "class", "classes", spec="")
    return _dtype(feature) or type(feature).__name__.lower()
