"""Targets as arrays, made from the labels and numbers of folders, tables and data sets, with errors for bad ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from launcher.errors import UserError
from launcher.recipe.protocols import TargetKind
from launcher.text import listed, plural


def column_names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the columns in a field that holds one name or several."""
    return (value,) if isinstance(value, str) else value


def _sound_columns(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    names = column_names(value)
    if not (names and all(names)):
        raise ValueError("should name a column, or several")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"names {', '.join(twice)} twice")
    return value


Columns = Annotated[str | tuple[str, ...], AfterValidator(_sound_columns)]
"""Name of one column, or names of several."""

MOST_DIGITS = 100
"""Largest number of characters of a class name that is sorted as a number; Python itself reads at most 4,300 digits."""

MEANING: dict[TargetKind, str] = {
    "class": "one class per image",
    "labels": "several labels per image (0 or 1 each)",
    "values": "numbers per image",
}


def refuse(part: str, gives: TargetKind, target_kind: TargetKind) -> None:
    """Raise UserError if a part that gives only one kind of target is asked for another."""
    if target_kind != gives:
        raise UserError(
            f"data: {part} gives {MEANING[gives]}, but the task reads {MEANING[target_kind]}; "
            "use data.CsvImages or data.HuggingFace with label_column naming the target columns"
        )


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels, sorted as numbers if all are integers (2 before 10, -1 before 0), else as text."""
    distinct = set(labels)
    if all(len(label) <= MOST_DIGITS and label.removeprefix("-").isdecimal() for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


def class_indices(labels: Sequence[str], names: tuple[str, ...], where: str) -> npt.NDArray[np.int64]:
    """Return int64 (N,): each label's index in `names`, which come from the training images.

    `where` names the source of the labels in errors. Raises UserError for labels that are not among `names`.
    """
    place = {name: index for index, name in enumerate(names)}
    unknown = class_names(label for label in set(labels) if label not in place)
    if unknown:
        shown = listed([repr(name) for name in unknown])
        raise UserError(
            f"{where}: {plural(len(unknown), 'class', 'classes', spec='')} not among the training images: {shown}; "
            f"known are {listed([repr(name) for name in names], most=10)}"
        )
    return np.fromiter((place[label] for label in labels), dtype=np.int64, count=len(labels))


def numbers(
    columns: Sequence[Sequence[Any]],
    names: tuple[str, ...],
    target_kind: TargetKind,
    where: str,
    row_name: Callable[[int], str],
) -> npt.NDArray[np.float32] | npt.NDArray[np.float64]:
    """Return (N, len(columns)), float32 for "labels", else float64, from columns of numbers or of text with numbers.

    Raises UserError with a line for each column that has cells that are not finite numbers (for "labels": not 0 or 1),
    and for whole numbers that float64 cannot hold exactly.
    """
    problems, arrays = [], []
    for name, column in zip(names, columns, strict=True):
        values = [_number(cell) for cell in column]
        if target_kind == "labels":
            bad, expected = [row for row, value in enumerate(values) if value not in (0.0, 1.0)], "0 or 1"
        else:
            bad, expected = [row for row, value in enumerate(values) if not math.isfinite(value)], "a finite number"
            inexact = [row for row, value in enumerate(values) if _is_rounded(column[row], value)]
            if inexact:
                shown = listed([f"{row_name(row)}: {column[row]!r}" for row in inexact])
                problems.append(
                    f"{where}: column {name!r} has {plural(len(inexact), 'whole number')} that float64 cannot hold "
                    f"exactly (above 2^53): {shown}; subtract what they have in common"
                )
        if bad:
            shown = listed([f"{row_name(row)}: {column[row]!r}" for row in bad])
            problems.append(
                f"{where}: column {name!r} has {plural(len(bad), 'cell', spec='')} that should be {expected}: {shown}"
            )
        arrays.append(np.asarray(values, dtype=np.float32 if target_kind == "labels" else np.float64))
    if problems:
        raise UserError(*problems)
    return np.stack(arrays, axis=1)


def _is_rounded(cell: Any, value: float) -> bool:
    """Return whether a whole number changes when it becomes a float."""
    text = str(cell).strip()
    is_large = 2**53 <= abs(value) < math.inf
    return is_large and text.lstrip("+-").isdecimal() and int(text) != int(value)


def _number(cell: Any) -> float:
    """Return the number in a cell, or NaN if it has none."""
    if isinstance(cell, str):
        cell = {"true": 1, "false": 0}.get(cell.strip().lower(), cell)
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan
