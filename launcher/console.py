"""Output to the terminal: tables as lines of text, and a standard output that can no longer be written to."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

_LOST = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def lost_output(error: OSError) -> OSError | None:
    """Return the error with which standard output fails, or None if `error` came from something else.

    If it fails, standard output is redirected to the null device, so that nothing is written to it again.
    """
    if sys.stdout is None or error.errno not in _LOST:
        return None
    with contextlib.suppress(ValueError):  # closed, or not a file
        output = sys.stdout.fileno()
        try:
            os.write(output, b"\n")
        except OSError as again:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output)  # Python flushes once more when it exits
            os.close(nowhere)
            return again
    return None


def columns(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a table, no wider than its cells need and without trailing spaces.

    The columns in `left` are aligned left, all others right.

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
    """Print a table in the layout of `columns`; the first row is its header.

    A row is one line, whatever the width of the terminal: names stay whole, so that they can be copied and grepped.
    """
    for number, line in enumerate(columns(rows, left=left)):
        console.print(Text(line, style="" if number else "bold"), soft_wrap=True)


def side_by_side(rows: Sequence[Sequence[str]], width: float) -> list[str]:
    """Return the lines of a table whose first column names the rows, fitted to `width` characters.

    No cell is shortened or broken. If the table is too wide, it is transposed, provided that it then fits; otherwise
    it is split into blocks of as many columns as fit, one below the other, each with the names of the rows.
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
