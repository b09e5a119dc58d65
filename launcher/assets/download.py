"""Download of files, each complete or not at all, with a display of progress."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.progress import DownloadColumn, TransferSpeedColumn

from launcher.console import Reporter
from launcher.files import draft_file, remove_drafts
from launcher.text import plural, readable_size

Answer = TypeVar("Answer")
Late = TypeVar("Late")

STALL_SECONDS = 60
"""Time for which a transfer may stall."""


def answer_within(seconds: float, ask: Callable[[], Answer], otherwise: Late) -> Answer | Late:
    """Return the answer of `ask`, or `otherwise` if it takes longer than that.

    It runs in a thread, as a name server that does not answer keeps a process waiting for much longer than any
    connection's time-out; in a daemon thread, so that it never delays the exit.
    """
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else otherwise


def download(url: str, file: Path, sha256_prefix: str | None = None) -> None:
    """Download `url` to `file`, which then is complete or absent.

    Raises OSError for all errors of network and disk, including a response that is too short, and RuntimeError for
    content whose SHA-256 does not begin with `sha256_prefix`.
    """
    remove_drafts(file.parent, file.name)  # from processes that were killed
    request = urllib.request.Request(url, headers={"User-Agent": "launcher"})  # noqa: S310 - published https urls
    digest, taken = hashlib.sha256(), 0
    with urllib.request.urlopen(request, timeout=STALL_SECONDS) as answer, draft_file(file) as stream:  # noqa: S310
        announced = answer.headers.get("Content-Length")
        while chunk := answer.read(1 << 18):
            stream.write(chunk)
            digest.update(chunk)
            taken += len(chunk)
        # A connection that breaks off looks like the end of the file.
        if announced is not None and taken != int(announced):
            raise OSError(f"the connection ended after {taken:,} of {plural(int(announced), 'byte')}")
        if sha256_prefix and not digest.hexdigest().startswith(sha256_prefix):
            raise RuntimeError(
                f"what {url} sent has the SHA-256 {digest.hexdigest()}, which should start with {sha256_prefix}"
            )


@contextlib.contextmanager
def shown(title: str, taken: Callable[[], int], total: int | None = None) -> Iterator[None]:
    """Show on stderr how many bytes have arrived: as a bar on a terminal, elsewhere as a line from time to time.

    `taken` returns their number. Measuring the files that arrive works for every library, whatever it reports about its
    own downloads.
    """
    of_all = f" of {readable_size(total)}" if total else ""
    columns = DownloadColumn(), TransferSpeedColumn()
    reporter = Reporter(total, lambda done, _: f"{title}: {readable_size(done)}{of_all}", title=title, columns=columns)
    ended = threading.Event()

    def measure() -> None:
        wait = reporter.seconds
        while not ended.wait(wait):
            begin = time.monotonic()
            reporter.update(taken())
            # Measuring a hundred thousand files on a network disk takes long.
            wait = max(reporter.seconds, 10 * (time.monotonic() - begin))

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    try:
        with reporter:
            yield
    finally:
        ended.set()
        thread.join()


def size_of(folder: Path, pattern: str = "*") -> int:
    """Return the bytes of all files below `folder` whose names match `pattern`, even while others write there."""
    total = 0
    for below, _, names in os.walk(folder):
        for name in fnmatch.filter(names, pattern):
            with contextlib.suppress(OSError):
                total += Path(below, name).lstat().st_size
    return total
