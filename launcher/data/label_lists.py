"""Cells with several labels: words, ids, or a 0 or 1 for each label. Ambiguous cells are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from launcher.data.names import nfc
from launcher.data.targets import class_indices, class_names
from launcher.errors import UserError
from launcher.text import listed, plural

Form = Literal["positions", "names"]
"""Meaning of a list: a 0 or 1 for each label in order ("positions"), or the labels or their ids ("names")."""

_SEPARATORS = {"|": "'|'", ";": "';'", ",": "commas"}
_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")
_INSTEAD = "write the labels as words, or one column of 0 and 1 for each label"


@dataclasses.dataclass(frozen=True)
class LabelLists:
    """The labels of each image of a split, as text, and how they were read."""

    where: str
    rows: list[list[str]]
    row_name: Callable[[int], str]
    form: Form
    note: str
    """Description of how the labels are read, for people."""

    def names(self, rows: Sequence[int] | None = None) -> tuple[str, ...]:
        """Return the distinct labels of these rows (by default all rows), or the positions: "0", "1", ...

        Raises UserError if no image has a label.
        """
        if self.form == "positions":
            return tuple(str(place) for place in range(len(self.rows[0])))
        names = class_names(
            label for row in (range(len(self.rows)) if rows is None else rows) for label in self.rows[row]
        )
        if not names:
            raise UserError(f"{self.where}: no image has a label ({self.note})")
        return names

    def matrix(self, names: tuple[str, ...], rows: Sequence[int] | None = None) -> npt.NDArray[np.float32]:
        """Return float32 (N, len(names)) of 0 and 1.

        Raises UserError for labels that are not among the names, and for lists by position of another length.
        """
        chosen = [self.rows[row] for row in (range(len(self.rows)) if rows is None else rows)]
        if self.form == "positions":
            odd = [row for row, labels in enumerate(chosen) if len(labels) != len(names)]
            if odd:
                lengths = sorted({len(chosen[row]) for row in odd})
                raise UserError(
                    f"{self.where}: lists of {listed([str(n) for n in lengths])} zeros and ones, but there "
                    f"{'is' if len(names) == 1 else 'are'} {plural(len(names), 'label', spec='')}"
                )
            return np.asarray([[_value(label) for label in labels] for labels in chosen], dtype=np.float32)
        matrix = np.zeros((len(chosen), len(names)), dtype=np.float32)
        pairs = [(row, label) for row, labels in enumerate(chosen) for label in labels]
        indices = class_indices([label for _, label in pairs], names, self.where)
        matrix[[row for row, _ in pairs], indices] = 1.0
        return matrix


def cells_are_lists(cells: Sequence[str]) -> bool:
    """Return whether cells of text hold labels, rather than one number each: 0 or 1 for the one label of the column."""
    filled = [cell for cell in cells if cell]
    numbers = [not math.isnan(_value(cell)) for cell in filled]
    separated = any(
        cell.startswith("[") or any(mark in cell for mark in _SEPARATORS) or re.fullmatch(r"\d+(\s+\d+)+", cell)
        for cell in filled
    )
    return bool(filled) and (separated or not any(numbers))


def lists_in_cells(
    cells: Sequence[str], column: str, where: str, row_name: Callable[[int], str], like: LabelLists | None = None
) -> LabelLists:
    """Read cells of text: "cat|dog", "cat;dog", "cat,dog", "['cat', 'dog']", "[1, 0, 1]", "1 0 1"; "" means no label.

    `like` holds the training images' labels, which are to be read in the same way. Raises UserError for cells that
    cannot be read, or that can be read in two ways.
    """
    filled = [cell for cell in cells if cell]
    brackets = [cell.startswith("[") and cell.endswith("]") for cell in filled]
    if any(brackets) and not all(brackets):
        odd = next(row for row, cell in enumerate(cells) if cell and not (cell[0] == "[" and cell[-1] == "]"))
        raise UserError(f"{where}: column {column!r} has lists in brackets, but {row_name(odd)} says {cells[odd]!r}")
    if any(brackets):
        problems: list[str] = []
        rows: list[list[Any]] = []
        for row, cell in enumerate(cells):
            labels = _bracketed(cell) if cell else []
            if labels is None:
                problems.append(f"{row_name(row)}: {cell!r}")
            rows.append(labels or [])
        if problems:
            raise UserError(
                f"{where}: column {column!r} has {len(problems)} cell(s) that are no list: {listed(problems)}"
            )
        return lists_in_rows(rows, column, where, row_name, like)
    marks = [mark for mark in _SEPARATORS if any(mark in cell for cell in filled)]
    if len(marks) > 1:
        both = listed([_SEPARATORS[mark] for mark in marks])
        raise UserError(
            f"{where}: column {column!r} has {both} in its cells, so what separates labels is unclear; keep one of them"
        )
    mark = marks[0] if marks else None
    if mark is None and all(re.fullmatch(r"[\d.\s]+", cell) for cell in filled):
        split = [cell.split() for cell in cells]
    else:
        split = [[piece.strip() for piece in cell.split(mark)] if mark else [cell] for cell in cells]
    how = f"separated by {_SEPARATORS[mark]}" if mark else "one in each cell that is not empty"
    return lists_in_rows([[piece for piece in row if piece] for row in split], column, where, row_name, like, how)


def lists_in_rows(
    rows: Sequence[Sequence[Any] | None],
    column: str,
    where: str,
    row_name: Callable[[int], str],
    like: LabelLists | None = None,
    how: str = "in lists",
) -> LabelLists:
    """Read lists of words, of ids, or of a 0 or 1 for each label. Raises UserError as `lists_in_cells` does."""
    missing = [row for row, labels in enumerate(rows) if labels is None or any(map(_is_missing, labels))]
    if missing:
        shown = listed([row_name(row) for row in missing])
        raise UserError(
            f"{where}: {plural(len(missing), 'image has', 'images have', spec='')} no label in {column!r}: {shown}"
        )
    odd = [row for row, labels in enumerate(rows) if any(isinstance(label, (list, dict)) for label in labels or ())]
    if odd:
        raise UserError(f"{where}: column {column!r} has lists within lists: {row_name(odd[0])}")
    texts = [[_text(label) for label in labels or ()] for labels in rows]
    form = _form(texts, column, where, row_name, like)
    if form == "positions":
        each = plural(len(texts[0]), "zero or one", "zeros and ones")
        note = f"column {column!r}: each list of {each} is read by position, a label for each"
    else:
        ids = all(not math.isnan(_value(label)) for labels in texts for label in labels)
        note = f"column {column!r}: {'ids of labels' if ids else 'labels'} {how}"
        if alone := sum(not labels for labels in texts):
            note += f" ({plural(alone, 'image')} without one)"
    return LabelLists(where, texts, row_name, form, note)


def _form(
    rows: list[list[str]], column: str, where: str, row_name: Callable[[int], str], like: LabelLists | None
) -> Form:
    values = [[_value(label) for label in labels] for labels in rows]
    if any(math.isnan(value) for labels in values for value in labels):
        form: Form | None = "names"
    else:
        fractions = [row for row, labels in enumerate(values) if any(value % 1 for value in labels)]
        if fractions:
            raise UserError(
                f"{where}: column {column!r} should say 0 or 1 for each label, or name labels, but says "
                f"{listed(rows[fractions[0]])} ({row_name(fractions[0])})"
            )
        form = _form_of_numbers(rows, values, column, where, row_name)
    if like is not None and form is not None and form != like.form:
        raise UserError(f"{where}: column {column!r} is read in another way than in the training images ({like.note})")
    form = form or (like.form if like is not None else None)
    if form is None:
        raise UserError(
            f"{where}: column {column!r} has lists such as [{', '.join(rows[0])}], which may be ids of labels or a 0 "
            f"or 1 for each label; {_INSTEAD}"
        )
    return form


def _form_of_numbers(
    rows: list[list[str]], values: list[list[float]], column: str, where: str, row_name: Callable[[int], str]
) -> Form | None:
    """Return how lists of whole numbers are to be read, or None if both ways are possible."""
    lengths = {len(labels) for labels in values}
    twice = next((row for row, labels in enumerate(values) if len(set(labels)) < len(labels)), None)
    binary = all(value in (0, 1) for labels in values for value in labels)
    if binary and len(lengths) == 1 and lengths != {0}:
        return "positions" if twice is not None else None
    if twice is not None and (binary or len(lengths) == 1):
        shown = f"[{', '.join(rows[twice][:8])}{', ...' if len(rows[twice]) > 8 else ''}] ({row_name(twice)})"
        what = "lists of zeros and ones of different lengths" if binary else "lists of equal length with values above 1"
        raise UserError(
            f"{where}: column {column!r} has {what}, in which a value comes twice: {shown}; neither ids of labels nor "
            f"a 0 or 1 for each label; {_INSTEAD}"
        )
    return "names"


def _bracketed(cell: str) -> list[Any] | None:
    """Return the items of "['a', 'b']", '["a"]', "[1 0 1]" or "[a, b]", or None if the cell is not a list."""
    try:
        items = json.loads(cell)
        return items if isinstance(items, list) else None
    except (ValueError, RecursionError):
        pass
    inner = cell[1:-1].strip()
    if re.search(r"[][{}]", _QUOTED.sub("", inner)):
        return None
    if _QUOTED.match(inner):
        if re.sub(r"[\s,;|]", "", _QUOTED.sub("", inner)):
            return None
        return [re.sub(r"\\(.)", r"\1", one or other) for one, other in _QUOTED.findall(inner)]
    mark = next((mark for mark in (",", ";", "|") if mark in inner), None)
    if mark is None and not math.isnan(_value(inner.split()[0])):
        return list(inner.split())
    return [piece.strip() for piece in inner.split(mark) if piece.strip()] if mark else [inner]


def _is_missing(label: Any) -> bool:
    """Return whether a label is missing: null, NaN, or infinite (which is how 1e400 is read)."""
    return label is None or (isinstance(label, (float, np.floating)) and not math.isfinite(label))


def _text(label: Any) -> str:
    is_whole = isinstance(label, (float, np.floating)) and float(label).is_integer()
    if is_whole or isinstance(label, (bool, np.bool_)):
        return str(int(label))
    text = nfc(str(label).strip())
    value = _value(text)  # "1." and "true" are 1, but "007" is a name
    return str(int(value)) if value in (0, 1) and not text.isdecimal() else text


def _value(text: str) -> float:
    """Return the number that a label stands for, or NaN for a word."""
    text = {"true": "1", "false": "0"}.get(text.strip().lower(), text)
    return float(text) if re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*", text, re.IGNORECASE) else math.nan
