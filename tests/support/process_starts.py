"""A count of the processes that this one has started, by which markers of tests are held to be true."""

from __future__ import annotations

import sys
import threading

EVENTS = ("subprocess.Popen", "os.fork", "os.posix_spawn", "tests.command")
"""Audit events; the last one is raised by `commands.ForkServer`, whose server forks in its stead."""

ASKED_BY_LIBRARIES = ("/sbin/ldconfig", "uname")
"""Programs that Triton and Python's `platform` ask when first used, in whichever test that is."""

_started = 0


def _count(event: str, arguments: tuple[object, ...]) -> None:
    global _started
    if event in EVENTS and threading.current_thread() is threading.main_thread():
        _started += not arguments or arguments[0] not in ASKED_BY_LIBRARIES


def started_processes() -> int:
    """Return how many processes the main thread has started; other threads work beside the tests, for several."""
    return _started


sys.addaudithook(_count)
