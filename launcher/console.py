"""Output to the terminal: tables as lines of text, progress, and a standard output that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TimeRemainingColumn
from rich.text import Text
from typing_extensions import Self

from launcher.text import one_line

_LOST = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_SECONDS_OF_BAR = 0.2
"""Time between two movements of a bar."""


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
        except OSError as failure:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, output)  # Python flushes once more when it exits
            os.close(null)
            return failure
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


def to_stderr(line: str) -> None:
    """Print a line on stderr at once, whatever becomes of its reader.

    rich would take stdout away from the whole process if nobody reads stderr any more.
    """
    print(line, file=sys.stderr, flush=True)


class Reporter:
    """The progress of long work: on a terminal a bar, if there are `columns` for it, and elsewhere lines.

    `line` words what is done and the seconds left. A line is due every `seconds`, so that quick work has none, and goes
    to `report`, or else to stderr.
    """

    def __init__(
        self,
        total: int | None,
        line: Callable[[int, float], str],
        report: Callable[[str], None] | None = None,
        *,
        seconds: float = 10.0,
        title: str = "",
        columns: Sequence[ProgressColumn] = (),
    ) -> None:
        self._total, self._line, self._report = total, line, report or self.print
        self._begin = self._last = time.monotonic()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._has_bar = bool(columns) and self._console.file.isatty()
        self.seconds = _SECONDS_OF_BAR if self._has_bar else seconds
        shown: list[str | ProgressColumn] = ["{task.description}", BarColumn(), *columns, TimeRemainingColumn()]
        self._bar = Progress(
            *shown, console=self._console, transient=True, redirect_stdout=False, disable=not self._has_bar
        )
        self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def print(self, line: str) -> None:
        """Print a line that stays, unless it is empty."""
        if line and self._has_bar:
            self._console.print(one_line(line), markup=False)
        elif line:
            to_stderr(one_line(line))

    def update(self, done: int) -> None:
        """Show how much is done, if that is due."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return
        self._last = now
        self._bar.update(self._task, completed=done)
        if not self._has_bar:
            left = (now - self._begin) / max(done, 1) * ((self._total or done) - done)
            self._report(self._line(done, left))
