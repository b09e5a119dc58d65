"""The columns of an Arrow table that hold images and targets: found by their types, or named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from launcher.errors import UserError, did_you_mean
from launcher.recipe.data.sources import TableImages
from launcher.recipe.data.targets import MEANING, class_indices, class_names, listed, numbers
from launcher.recipe.protocols import TargetKind

if TYPE_CHECKING:
    import datasets

Array = npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.float64]


class ImageTable:
    """One split of a data set: its images as stored (never decoded by `datasets`), and its targets."""

    def __init__(
        self,
        title: str,
        table: datasets.Dataset,
        target_kind: TargetKind,
        image_column: str | None,
        label_columns: tuple[str, ...] | None,
    ) -> None:
        import datasets

        self._title = title
        self._target_kind = target_kind
        if not len(table):
            raise UserError(f"data: {title} has no rows")
        self._features: dict[str, Any] = dict(table.features)
        image_column = self._image_column(image_column)
        if isinstance(self._features[image_column], datasets.Image):
            table = table.cast_column(image_column, datasets.Image(decode=False))
        self.images = TableImages(title, table, image_column)
        self._columns = self._label_columns(image_column, label_columns)
        cells = table.select_columns(list(self._columns))[:]
        self._cells: list[Sequence[Any]] = [cells[name] for name in self._columns]
        self.names = self._names()
        """Names of the outputs, as this split alone gives them."""

    def targets(self, names: tuple[str, ...]) -> Array:
        """Targets as in `protocols.Split`, for the names that the training split gives. Raises UserError where they
        are not among these, are missing, or are not numbers."""
        column = self._cells[0]
        if self._target_kind == "class":
            return class_indices(self._texts(column, range(len(column))), names, self._title)
        if not self._is_list():
            return numbers(self._cells, self._columns, self._target_kind, self._title, lambda row: f"row {row}")
        labels, rows = _flat(column)
        matrix = np.zeros((len(column), len(names)), dtype=np.float32)
        matrix[rows, class_indices(self._texts(labels, rows), names, self._title)] = 1.0
        return matrix

    def _names(self) -> tuple[str, ...]:
        if self._target_kind == "values" or (self._target_kind == "labels" and not self._is_list()):
            return self._columns
        given = self._given_names()
        if given is not None:
            return given
        column = self._cells[0]
        return class_names(self._texts(*(_flat(column) if self._is_list() else (column, range(len(column))))))

    def _texts(self, labels: Sequence[Any], rows: Sequence[int]) -> list[str]:
        """Labels as names. Raises UserError for missing ones: None, or -1 where the column lists its classes."""
        given = self._given_names()
        missing = [
            row
            for row, label in zip(rows, labels, strict=True)
            if label is None or (given is not None and not 0 <= label < len(given))
        ]
        if missing:
            shown = listed([f"row {row}" for row in missing])
            raise UserError(
                f"data: {self._title}: {len(missing)} images have no label in {self._columns[0]!r}: {shown}"
            )
        return [given[label] for label in labels] if given is not None else [str(label) for label in labels]

    def _given_names(self) -> tuple[str, ...] | None:
        """The names that the column's type lists (ClassLabel), in its order."""
        feature = self._features[self._columns[0]]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        return tuple(names) if names is not None else None

    def _is_list(self) -> bool:
        return _is_list(self._features[self._columns[0]])

    def _image_column(self, named: str | None) -> str:
        found = [name for name, feature in self._features.items() if type(feature).__name__ == "Image"]
        found = found or [name for name, feature in self._features.items() if _dtype(feature).endswith("binary")]
        if named is not None:
            self._check_named("image_column", [named], lambda feature: _is_image(feature), "images")
            return named
        return self._only("image_column", found, "images")

    def _label_columns(self, image_column: str, named: tuple[str, ...] | None) -> tuple[str, ...]:
        kind = self._target_kind
        if named is not None:
            if len(named) != 1 and kind == "class":
                raise UserError(f"data.label_column: {len(named)} columns, but a class is read from one")
            fits: Callable[[Any], bool] = {
                "class": lambda feature: _is_class(feature),
                "labels": lambda feature: _is_number(feature) or (_is_list(feature) and len(named) == 1),
                "values": lambda feature: _is_number(feature),
            }[kind]
            self._check_named("label_column", named, fits, MEANING[kind])
            return named
        others = {name: feature for name, feature in self._features.items() if name != image_column}
        # The first test that any column passes decides: a column that lists its classes goes before numbers and text.
        tests: dict[TargetKind, list[Callable[[Any], bool]]] = {
            "class": [lambda feature: hasattr(feature, "names"), _is_class],
            "labels": [_is_list],
            "values": [lambda feature: _dtype(feature).startswith("float"), _is_number],
        }
        found: list[str] = []
        for test in tests[kind]:
            found = found or [name for name, feature in others.items() if test(feature)]
        return (self._only("label_column", found, MEANING[kind]),)

    def _check_named(self, field: str, named: Sequence[str], fits: Callable[[Any], bool], what: str) -> None:
        problems = []
        for name in named:
            if name not in self._features:
                hint = did_you_mean(name, list(self._features))
                problems.append(f"data.{field}: {self._title} has no column {name!r}{hint}")
            elif not fits(self._features[name]):
                problems.append(
                    f"data.{field}: column {name!r} of {self._title} cannot be read as {what}: {self._shown()}"
                )
        if problems:
            raise UserError(*problems)

    def _only(self, field: str, found: Sequence[str], what: str) -> str:
        if len(found) != 1:
            which = f"several columns of {self._title} could be" if found else f"no column of {self._title} looks like"
            raise UserError(f"data.{field}: {which} {what}; name one of its columns: {self._shown()}")
        return found[0]

    def _shown(self) -> str:
        return ", ".join(f"{name} ({_described(feature)})" for name, feature in self._features.items())


def _flat(column: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """The labels of all lists in a row, and the row that each is from. A missing list is one missing label."""
    pairs = [(label, row) for row, cell in enumerate(column) for label in ([None] if cell is None else cell)]
    return [label for label, _ in pairs], [row for _, row in pairs]


def _dtype(feature: Any) -> str:
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else ""


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image" or _dtype(feature).endswith("binary")


def _is_list(feature: Any) -> bool:
    return hasattr(feature, "feature") and not isinstance(feature.feature, dict)


def _is_class(feature: Any) -> bool:
    return (
        hasattr(feature, "names")
        or "int" in _dtype(feature)
        or "string" in _dtype(feature)
        or _dtype(feature) == "bool"
    )


def _is_number(feature: Any) -> bool:
    return hasattr(feature, "names") or _dtype(feature).startswith(("int", "uint", "float", "bool"))


def _described(feature: Any) -> str:
    if hasattr(feature, "names"):
        return f"{len(feature.names)} classes"
    return _dtype(feature) or type(feature).__name__.lower()
