"""Progress of a prediction on stderr: a bar on a terminal, and a line every 10 seconds elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from launcher.text import one_line, plural

TOLD_EVERY_SECONDS = 10.0


class Teller:
    """The progress of a prediction, and lines about files that were not predicted."""

    def __init__(self, total: int) -> None:
        self.done = self.broken = 0
        self._total, self._told = total, time.monotonic()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            redirect_stdout=False,
        )
        self._task = self._bar.add_task("predicting", total=total)

    def __enter__(self) -> Teller:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line, unless it is empty."""
        if line:
            self._console.print(one_line(line), markup=False)

    def name(self, what: str, path: str, reason: str = "") -> None:
        """Print the name of a file that was not predicted, and the reason."""
        self.say(f"{what}: {path}" + (f" ({reason})" if reason else ""))

    def advance(self, predicted: int, broken: int) -> None:
        """Add images that were predicted or could not be read, and print the progress if it is due."""
        self.done += predicted
        self.broken += broken
        self._bar.advance(self._task, predicted + broken)
        looked_at, is_due = self.done + self.broken, time.monotonic() - self._told > TOLD_EVERY_SECONDS
        if self._bar.disable and is_due and looked_at < self._total:
            self._told = time.monotonic()
            self.say(f"{looked_at:,} of {self._total:,}")

    def end(self, to: Path | None) -> None:
        """Print the summary."""
        where = f", in {to}" if to else ""
        unread = f"; {self.broken:,} could not be read" if self.broken else ""
        self.say(f"{plural(self.done, 'image')} predicted{where}{unread}")
