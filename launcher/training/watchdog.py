"""A process that is stuck ends, and says where: the others would wait for it for ever."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

import psutil

WAITS_LONGER_SECONDS = 15.0
"""A process that only waits for another gives the culprit so much more time to speak first."""


class StuckError(RuntimeError):
    """A process made no progress for longer than the recipe's `hang_limit_seconds`."""


class Watchdog:
    """Ends this process when `beat` was not called for `limit_seconds`, or for `patience()` seconds where that is not
    None: then it was asked to stop. The launcher then ends the others."""

    def __init__(
        self, limit_seconds: float, process_index: int, patience: Callable[[], float | None] = lambda: None
    ) -> None:
        self.limit_seconds = limit_seconds
        self._patience = patience
        self.process_index = process_index
        self._last = time.monotonic()
        self._doing = "the start of training"
        self._main = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def beat(self, doing: str) -> None:
        """This process is alive, and begins with `doing`."""
        self._last, self._doing = time.monotonic(), doing

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.limit_seconds / 4)):
            silent, patience = time.monotonic() - self._last, self._patience()
            limit = self.limit_seconds if patience is None else min(self.limit_seconds, patience)
            if silent < limit:
                continue
            frame = sys._current_frames().get(self._main)
            if _waits_for_others(frame) and silent < limit + WAITS_LONGER_SECONDS:
                continue
            self._end(silent, frame, asked=patience is not None)

    def _end(self, silent: float, frame: FrameType | None, *, asked: bool) -> None:
        waits = ", waiting for another process" if _waits_for_others(frame) else ""
        message = (
            f"process {self.process_index} on {socket.gethostname()} made no progress for {silent:.0f} s in "
            f"{self._doing}{waits}; "
        )
        message += (
            "it was asked to stop, and ends without saving: the same command continues from the last checkpoint"
            if asked
            else f"if it only needs longer, raise hang_limit_seconds={self.limit_seconds:g} in the recipe"
        )
        where = "".join(traceback.format_stack(frame)) if frame else ""
        print(f"{where}error: {message}", file=sys.stderr, flush=True)
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(StuckError(f"{message}\n{where}"))
        for child in psutil.Process().children(recursive=True):  # a data worker that waits for a file for ever stays
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(1)


def _waits_for_others(frame: FrameType | None) -> bool:
    """Whether the innermost frames are those of a collective, or of a backward pass (where DDP waits)."""
    if frame is None:
        return False
    name = frame.f_code.co_filename.replace(os.sep, "/")
    return "/torch/distributed/" in name or name.endswith("/torch/autograd/graph.py")
