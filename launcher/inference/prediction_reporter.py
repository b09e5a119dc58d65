"""Progress of a prediction on stderr: a bar on a terminal, and a line every 10 seconds elsewhere."""

from __future__ import annotations

from pathlib import Path

from rich.progress import MofNCompleteColumn

from launcher.console import Reporter
from launcher.text import plural


class PredictionReporter(Reporter):
    """The progress of a prediction, and lines about files that were not predicted."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.broken = total, 0, 0
        columns = [MofNCompleteColumn()]
        super().__init__(total, lambda done, _: f"{done:,} of {total:,}", title="predicting", columns=columns)

    def name(self, what: str, path: str, reason: str = "") -> None:
        """Print the name of a file that was not predicted, and the reason."""
        self.print(f"{what}: {path}" + (f" ({reason})" if reason else ""))

    def advance(self, predicted: int, broken: int) -> None:
        """Add images that were predicted or could not be read, and print the progress if it is due."""
        self.done += predicted
        self.broken += broken
        if self.done + self.broken < self.total:
            self.update(self.done + self.broken)

    def end(self, to: Path | None) -> None:
        """Print the summary."""
        where = f", in {to}" if to else ""
        unread = f"; {self.broken:,} could not be read" if self.broken else ""
        self.print(f"{plural(self.done, 'image')} predicted{where}{unread}")
