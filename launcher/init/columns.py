"""The columns of a table that are targets, and their kind; the rules are the same for text files and typed tables."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from launcher.data.names import in_list
from launcher.errors import UserError, did_you_mean
from launcher.recipe.protocols import TargetKind

LABEL_NAMES = ("label", "labels", "class", "classes", "target", "targets", "category", "class_name", "tags", "y")
"""Names of a column that decides, whatever the others hold; an earlier name takes precedence over a later one."""
NO_TARGETS = {"id", "idx", "index", "image_id", "img_id", "filename", "file_name", "width", "height", "fold", ""}
"""Names of columns that tell which image it is, not what it shows."""

FEW_NUMBERS = 20
"""The most different values that integers may have as classes; with more they are measured numbers, such as ages."""
IMAGES_OF_A_WORD = 2
"""The fewest images that a text must stand at, on average, to be a class and not a caption or a name."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table, summarised by its values."""

    name: str
    kind: Literal["names", "text", "int", "float", "list", "other"]
    """The kind of values: "names" if the type lists the classes; "list" for lists of labels; "other" for no kind."""
    rows: int
    distinct: int
    """The number of different values."""
    binary: bool
    """True if there is nothing but 0 and 1."""

    @property
    def is_class(self) -> bool:
        """True if each value can be a class: there are few of them, with several images each."""
        few = self.distinct <= FEW_NUMBERS if self.kind == "int" else self.distinct * IMAGES_OF_A_WORD <= self.rows
        return self.kind == "names" or (self.kind in ("text", "int") and self.distinct >= 2 and few)

    def __str__(self) -> str:
        kind = {"names": "classes", "text": "texts", "int": "whole numbers", "float": "numbers", "list": "lists"}
        what = "0 and 1" if self.binary else kind.get(self.kind, "other")
        return f"{self.name} ({what}, {self.distinct:,} different)" if self.distinct else f"{self.name} ({what})"


@dataclasses.dataclass(frozen=True)
class Targets:
    """The targets chosen in a table."""

    kind: TargetKind
    columns: tuple[str, ...]
    remark: str = ""
    """The columns that could have been meant instead."""


def text_column(name: str, cells: Sequence[str]) -> Column:
    """Summarise a column of a text file by what its cells read as; empty cells decide nothing."""
    values = {cell for cell in cells if cell}
    lowered = {value.lower() for value in values}
    kind: Literal["text", "int", "float", "list", "other"] = "text"
    if not values:
        kind = "other"
    elif all(re.fullmatch(r"[+-]?\d+", value) for value in values):
        kind = "int"
    elif len(values) <= FEW_NUMBERS and all(re.fullmatch(r"[+-]?\d+(\.0*)?", value) for value in values):
        kind = "int"  # "1.0" is how pandas writes classes if a cell of the column is empty
    elif all(map(_is_number, values)):
        kind = "float"
    elif looks_like_lists(values):
        kind = "list"
    binary = lowered in ({"0", "1"}, {"0.0", "1.0"}, {"true", "false"})
    return Column(name, kind, len(cells), len(values), binary)


def typed_column(name: str, values: Sequence[Any], kind: Literal["names", "text", "int", "float", "list"]) -> Column:
    """Summarise a column of a typed table."""
    if kind == "list":
        return Column(name, kind, len(values), 0, False)
    different = {value for value in values if value is not None}
    return Column(name, kind, len(values), len(different), different == {0, 1})


def targets_in(
    columns: Sequence[Column], where: str, label: Sequence[str] = (), kind: TargetKind | None = None
) -> Targets:
    """Choose the targets of a table; `label` names columns and `kind` says how targets are read, if the user does.

    1. A column named like a label ("label", "class", "target", ...) decides by what it holds.
    2. Otherwise several columns of 0 and 1 are labels, or one column of lists.
    3. Otherwise a column of few different texts or whole numbers is the class.
    4. Otherwise columns of numbers are the numbers to predict.

    Raises UserError if no column can be a target, and for names in `label` that are no columns.
    """
    if label:
        columns = _named(columns, label, where)
        if len(label) > 1 or kind is not None:
            return Targets(kind or _kind_of(columns), tuple(column.name for column in columns))
    usable = [column for column in columns if column.kind != "other"]
    if not label:
        usable = _allowed([column for column in usable if column.name.lower() not in NO_TARGETS], kind)
    if kind == "values" and usable:
        named_so = [column for column in usable if column.name.lower() in LABEL_NAMES]
        chosen = named_so[:1] or [column for column in usable if column.kind == "float"] or usable
        return Targets("values", tuple(column.name for column in chosen))
    if kind == "labels" and usable and usable[0].binary and len([c for c in usable if c.binary]) == 1:
        return Targets("labels", (usable[0].name,))
    by_name = {column.name.lower(): column for column in reversed(usable)}
    named = usable if label else [by_name[name] for name in LABEL_NAMES if name in by_name]
    for column in named:
        if read_as := _read_as(column):
            return Targets(read_as, (column.name,), _others(usable, column))
    if targets := _by_content(usable):
        return targets
    raise UserError(
        f"{where}: no column looks like a target: one column of classes (two or more, several images of each), several "
        f"of 0 and 1, or numbers; there are: {', '.join(map(str, columns)) or 'none beside the images'}; to say which: "
        "--label COLUMN --task classification, multilabel or regression"
    )


def _read_as(column: Column) -> TargetKind | None:
    if column.kind == "list":
        return "labels"
    if column.is_class:
        return "class"
    return "values" if column.kind in ("int", "float") and column.distinct > 1 else None


def _by_content(usable: Sequence[Column]) -> Targets | None:
    """Return the targets if no column is named like one, by rules 2 to 4."""
    binary = [column.name for column in usable if column.binary]
    if len(binary) > 1:
        return Targets("labels", tuple(binary))
    lists = [column for column in usable if column.kind == "list"]
    if lists:
        return Targets("labels", (lists[0].name,), _others(usable, lists[0]))
    classes = [column for column in usable if column.is_class]
    classes.sort(key=lambda column: ("names", "text", "int").index(column.kind))
    if classes:
        return Targets("class", (classes[0].name,), _others(usable, classes[0]))
    numbers = [column for column in usable if column.kind in ("float", "int") and column.distinct > 1]
    measured = [column for column in numbers if column.kind == "float"] or numbers
    if measured:
        return Targets("values", tuple(column.name for column in measured))
    return None


def looks_like_lists(values: set[str]) -> bool:
    """Return whether cells of a text file hold several labels each: "['cat', 'dog']" or "cat|dog".

    For the second form, "cat" and "dog" must come again in other cells; of "tench, Tinca tinca" no piece does.
    """
    if all(value.startswith("[") and value.endswith("]") for value in values):
        return True
    return any(
        len({piece.strip() for value in values for piece in value.split(mark)}) < len(values)
        for mark in "|;,"
        if any(mark in value for value in values)
    )


def _named(columns: Sequence[Column], label: Sequence[str], where: str) -> list[Column]:
    """Return the columns that the user names. Raises UserError for names of none."""
    names = [column.name for column in columns]
    problems = [
        f"--label {name}: {where} has no such column{did_you_mean(name, names)}"
        for name in label
        if in_list(name, names) is None
    ]
    if problems:
        raise UserError(*problems)
    return [columns[names.index(in_list(name, names) or name)] for name in label]


def _kind_of(columns: Sequence[Column]) -> TargetKind:
    return "labels" if all(column.binary for column in columns) else "values"


def _allowed(columns: list[Column], kind: TargetKind | None) -> list[Column]:
    """Return the columns that can be targets of a kind."""
    if kind is None:
        return columns
    fits: dict[TargetKind, Callable[[Column], bool]] = {
        "class": lambda column: column.is_class,
        "labels": lambda column: column.binary or column.kind == "list",
        "values": lambda column: column.kind in ("int", "float") and column.distinct > 1,
    }
    return [column for column in columns if fits[kind](column)]


def _others(usable: Sequence[Column], chosen: Column) -> str:
    others = [str(column) for column in usable if column is not chosen and (column.kind != "text" or column.is_class)]
    return f"not used: {', '.join(others[:4])}{' ...' if len(others) > 4 else ''}" if others else ""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
