"""The watchdog, which ends a stuck process and reports where it is stuck: the others would wait for it forever."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

import psutil

WAITS_LONGER_SECONDS = 15.0
"""Seconds of extra time for a process that only waits for another, so that the culprit reports first."""
STACKS_SIGNAL: int = getattr(signal, "SIGRTMAX", 0)
"""Signal upon which a data worker prints its stacks to standard error; 0 on macOS, which has none that is free."""
SECONDS_TO_PRINT_STACKS = 0.2

PATIENCE_SECONDS = 20.0
"""Seconds that a process that was asked to stop waits for an image that does not come.

By default, Slurm and Kubernetes kill a process 30 s after their SIGTERM.
"""

_T = TypeVar("_T")


class StuckError(RuntimeError):
    """A process made no progress for longer than the recipe's `hang_limit_seconds`."""


class Watchdog:
    """A thread that ends this process if `beat` was not called for `limit_seconds`; the launcher then ends the others.

    It also ends the process if it was asked to stop (at the time returned by `asked_at`), but cannot because it waits
    for images.
    """

    def __init__(
        self, limit_seconds: float, process_index: int, asked_at: Callable[[], float | None] = lambda: None
    ) -> None:
        self.limit_seconds = limit_seconds
        self._asked_at = asked_at
        self._waits_since: float | None = None
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
        """Record that this process is alive and now begins `doing`."""
        self._last, self._doing = time.monotonic(), doing

    def reading(self, batches: Iterable[_T]) -> Iterator[_T]:
        """Yield the batches of a loader, and record since when one is waited for."""
        iterator = iter(batches)
        while True:
            self._waits_since = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._waits_since = None
            yield batch

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.limit_seconds / 4)):
            now = time.monotonic()
            silent, frame = now - self._last, sys._current_frames().get(self._main)
            who = f"process {self.process_index} on {socket.gethostname()}"
            asked, since = self._asked_at(), self._waits_since
            if asked is not None and since is not None and now - max(asked, since) >= PATIENCE_SECONDS:
                self._end(
                    f"{who} was asked to stop, but has waited for images for {now - since:.0f} s in {self._doing}: it "
                    "ends without saving; the same command continues from the last checkpoint",
                    frame,
                )
            if silent < self.limit_seconds:
                continue
            waits = ", waiting for another process" if _waits_for_others(frame) else ""
            if waits and silent < self.limit_seconds + WAITS_LONGER_SECONDS:
                continue
            self._end(
                f"{who} made no progress for {silent:.0f} s in {self._doing}{waits}; if it only needs longer, raise "
                f"hang_limit_seconds={self.limit_seconds:g} in the recipe",
                frame,
            )

    def _end(self, message: str, frame: FrameType | None) -> NoReturn:
        where = "".join(traceback.format_stack(frame)) if frame else ""
        try:
            _print_stacks_of_workers()
            print(f"{where}error: {message}", file=sys.stderr, flush=True)
            if "TORCHELASTIC_ERROR_FILE" in os.environ:
                from torch.distributed.elastic.multiprocessing.errors import get_error_handler

                get_error_handler().record_exception(StuckError(f"{message}\n{where}"))
            for child in psutil.Process().children(recursive=True):  # a worker that waits for a file would live on
                with contextlib.suppress(psutil.Error):
                    child.kill()
        finally:  # even if standard error is closed
            os._exit(1)


def _print_stacks_of_workers() -> None:
    """Have each data worker print its stacks to standard error, one after the other: it may be what hangs."""
    for worker in multiprocessing.active_children() if STACKS_SIGNAL else ():
        assert worker.pid is not None  # it has started
        print(f"{worker.name}, pid {worker.pid}:", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            os.kill(worker.pid, STACKS_SIGNAL)
            time.sleep(SECONDS_TO_PRINT_STACKS)


def _waits_for_others(frame: FrameType | None) -> bool:
    """Return whether the innermost frame is that of a collective or of a backward pass (where DDP waits)."""
    if frame is None:
        return False
    name = frame.f_code.co_filename.replace(os.sep, "/")
    return "/torch/distributed/" in name or name.endswith("/torch/autograd/graph.py")
