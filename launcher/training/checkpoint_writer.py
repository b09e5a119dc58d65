"""Checkpoint writing in the background: training goes on meanwhile, and a second save waits for the first."""

from __future__ import annotations

import threading
import time

from launcher.errors import UserError
from launcher.training.checkpoint import Checkpoints, State
from launcher.training.heap import give_back


class BackgroundWriter:
    """A writer of one checkpoint at a time in a thread; errors are raised by the next `submit` or `wait`."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.seconds = 0.0
        """Seconds that the last checkpoint took to write."""
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def submit(self, state: State) -> None:
        """Wait for the previous checkpoint, then begin to write `state`, which the caller must no longer change."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=([state],), name="checkpoint-writer")
        self._thread.start()

    def join(self) -> None:
        """Wait until nothing is left to write, whether or not writing succeeds."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until nothing is left to write. Raise UserError if a checkpoint could not be written."""
        self.join()
        if self._error is not None:
            error, self._error = self._error, None
            newest = self.checkpoints.newest()
            raise UserError(
                f"{self.checkpoints.folder}: a checkpoint could not be written ({error.strerror or error}); "
                f"{f'{newest.name} is complete' if newest else 'none is complete'}; make room, and give the same "
                "command again"
            ) from error

    def _write(self, states: list[State]) -> None:
        """Write the one state of a list and empty the list, so that the state's memory can be released."""
        begin = time.monotonic()
        try:
            self.checkpoints.save(states.pop())
        except OSError as error:
            self._error = error
        finally:
            self.seconds = time.monotonic() - begin
            give_back()
