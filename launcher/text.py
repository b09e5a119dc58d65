"""Values as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console


def number(value: float | None) -> str:
    """Return a measured value with at least three significant digits, whatever its size; "nan" where it is none.

    >>> [number(value) for value in (0.96384, 12.5, 0.0000123456, 1.7e9, 0.0)]
    ['0.9638', '12.5000', '1.235e-05', '1.7e+09', '0.0000']
    """
    if value is None:
        return "nan"
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 10_000 else f"{value:.4g}"


def level(value: float, spread: float) -> str:
    """Return a value among others that lie `spread` apart, with the digits that tell it from them.

    >>> [level(1700000040.25, 115.0), level(0.00123456, 0.001), level(12.3456, 4.0)]
    ['1700000040', '0.001235', '12.35']
    """
    apart = abs(value) / spread if spread > 0 and math.isfinite(value) else 0.0
    return f"{value:.{min(17, max(4, math.ceil(math.log10(apart)) + 2 if apart > 0 else 4))}g}"


def columns(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a table, as wide as its cells need and without padding at their ends.

    The columns `left` stand at their left edge, all others at their right.

    >>> columns([["run", "loss"], ["a", "0.25"], ["longer", "1"]])
    ['run     loss', 'a       0.25', 'longer     1']
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        gaps = [" " * (width - cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
        cells = [cell + gap if at in left else gap + cell for at, (cell, gap) in enumerate(zip(row, gaps, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def show_table(rows: Sequence[Sequence[str]], console: Console, *, left: Sequence[int] = (0,)) -> None:
    """Print a table as `columns` lays it out; the first row is its header.

    A row is one line, whatever the width of the screen: names stay whole, to be copied and to be found by grep.
    """
    for number, line in enumerate(columns(rows, left=left)):
        console.print(Text(line, style="" if number else "bold"), soft_wrap=True)


def side_by_side(rows: Sequence[Sequence[str]], width: float) -> list[str]:
    """Return the lines of a table whose first column names the rows, and whose others stand beside each other.

    Nothing is shortened or broken. Where the columns need more than `width` characters, the table is turned if it fits
    then; else as many columns as fit stand beside each other, and the next ones, with the names again, below.
    """
    lines = columns(rows)
    if _widest(lines) <= width:
        return lines
    turned = columns([list(row) for row in zip(*rows, strict=True)])
    if _widest(turned) <= width:
        return turned
    lines, first = [], 1
    while first < len(rows[0]):
        after = first + 1
        while after < len(rows[0]) and _widest(columns(_cut(rows, first, after + 1))) <= width:
            after += 1
        lines += [*([""] if lines else []), *columns(_cut(rows, first, after))]
        first = after
    return lines


def _cut(rows: Sequence[Sequence[str]], first: int, after: int) -> list[list[str]]:
    return [[row[0], *row[first:after]] for row in rows]


def _widest(lines: Sequence[str]) -> int:
    return max(map(cell_len, lines), default=0)


_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_FORMULA_BEGINS = ("=", "+", "-", "@", "\t", "\r")


def inert_cell(value: object) -> object:
    """Return a cell of a CSV file that no spreadsheet takes for a formula: text that begins with = + - @, a tab or a
    carriage return gets an apostrophe before it, as OWASP advises; numbers stay numbers.

    >>> [inert_cell(cell) for cell in ("=1+1", "-7", "-7+1", "cat", -7, 0.5)]
    ["'=1+1", '-7', "'-7+1", 'cat', -7, 0.5]
    """
    if isinstance(value, str) and value.startswith(_FORMULA_BEGINS) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def active_cell(text: str) -> str:
    """Return what `inert_cell` was given."""
    return text[1:] if text.startswith("'") and inert_cell(text[1:]) != text[1:] else text


def without_controls(text: str) -> str:
    """Return text in which a terminal finds nothing to obey: control characters but tab and line feed are escaped.

    >>> without_controls("a\\x1b[31mb\\x9bc")
    'a\\\\x1b[31mb\\\\x9bc'
    """
    return "".join(f"\\x{ord(c):02x}" if (ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 else c for c in text)
