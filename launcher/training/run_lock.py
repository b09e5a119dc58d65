"""A lock that gives a run dir a single owner, even between machines on a shared file system."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from launcher.errors import UserError
from launcher.files import hold
from launcher.training.attempt import attempt_number, this_attempt
from launcher.training.stop_request import ask_to_stop

BEAT_EVERY_SECONDS = 10.0
STALE_AFTER_SECONDS = 90.0
"""Seconds without a sign of life after which a holder on another machine counts as dead."""
EARLIER_ATTEMPT_MAY_TAKE_SECONDS = 30.0
"""Seconds that an earlier attempt that is asked to stop gets for a step and a save."""
TAKE_OVER_MAY_TAKE_SECONDS = 10.0


class RunLock:
    """A file that names its holder and is touched while the holder lives.

    The kernel's locks alone are not enough: on many cluster file systems they silently hold on one machine only.
    """

    def __init__(self, run_dir: Path, name: str = "LOCK") -> None:
        self.path = run_dir / name
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, report: Callable[[str], None]) -> None:
        """Take the lock, or raise a UserError that names its holder.

        A dead holder's lock is taken over, after a line to `report`.
        """
        content = json.dumps(
            {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "process_started": psutil.Process().create_time(),
                **this_attempt(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                "token": self._token,
            }
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_name(f".{self.path.name}.{self._token}")
        with draft.open("w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # otherwise the lock may be empty after a power failure and name no holder
        try:
            self._outlive_earlier_attempt(report, draft)
            with self._alone():
                try:
                    os.link(draft, self.path)  # atomic, on network file systems too
                except FileExistsError:
                    self._take_over(draft, report)
                self._remove_dead_drafts()
        finally:
            draft.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let only one start at a time examine and change the lock, by the kernel's lock on the run dir.

        The kernel's lock ends with the process, so that it never needs to be taken over. File systems without such
        locks do without it.
        """
        handle = os.open(self.path.parent, os.O_RDONLY)
        try:
            end = time.monotonic() + TAKE_OVER_MAY_TAKE_SECONDS
            while not hold(handle):
                if time.monotonic() > end:
                    raise UserError(f"{self.path.parent}: another start is looking at its lock; try again")
                time.sleep(0.02)
            yield
        finally:
            os.close(handle)

    def _take_over(self, draft: Path, report: Callable[[str], None]) -> None:
        """Replace a dead holder's lock by `draft`. Raise UserError if the holder may be alive."""
        holder = self._read()
        silence = draft.stat().st_mtime - self.path.lstat().st_mtime  # both by the file system's clock
        if not holder:
            # A holder writes the lock atomically and touches it, so a damaged lock without a touch is nobody's.
            wait = 3 * BEAT_EVERY_SECONDS - silence
            if wait > 0:
                raise UserError(
                    f"{self.path}: does not say who holds it (it is empty or damaged), and was written just now; if no "
                    f"other run is at work in {self.path.parent}, remove it, or give the same command again in "
                    f"{wait:.0f} s"
                )
            report(f"taking over a lock that does not say who holds it ({self.path})")
        else:
            who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
            if _is_alive(holder, silence):
                raise UserError(
                    f"{self.path.parent}: another run is at work in it ({who}); wait for it, stop it "
                    f"(touch {shlex.quote(str(self.path.parent / 'STOP'))}), or give another --run-dir"
                )
            report(f"taking over the lock of a dead run ({who})")
        draft.replace(self.path)
        time.sleep(0.1)  # without the kernel's lock two may take over at the same time: the later one gets the lock
        if self._read().get("token") != self._token:
            raise UserError(f"{self.path.parent}: another run took the lock over at the same time")

    def _remove_dead_drafts(self) -> None:
        """Remove drafts left by starts that were killed while they tried to take the lock."""
        for draft in self.path.parent.glob(f".{self.path.name}.*"):
            if draft.name == f".{self.path.name}.{self._token}":
                continue
            with contextlib.suppress(OSError, ValueError):
                silence = time.time() - draft.stat().st_mtime
                holder = json.loads(draft.read_text() or "{}")
                if silence > STALE_AFTER_SECONDS or (holder and not _has_live_process(holder)):
                    draft.unlink(missing_ok=True)

    def has_owner(self) -> bool:
        """Return whether a living run holds the lock, as far as this machine can tell."""
        try:
            silence = time.time() - self.path.stat().st_mtime
        except OSError:
            return False
        return _is_alive(self._read(), silence)

    def is_held(self) -> bool:
        """Return whether this run still holds the lock; another may have taken it over, believing this run dead."""
        return self._read().get("token") == self._token

    def _outlive_earlier_attempt(self, report: Callable[[str], None], draft: Path) -> None:
        """Ask an earlier attempt of this job that is still at work to stop, and wait for it.

        After Slurm has lost a node and started the job again, the earlier attempt may still run on that node. It can
        save nothing more once the lock is taken over.
        """
        holder = self._read()
        if not _is_earlier_attempt(holder) or not _has_live_process(holder):
            return
        if draft.stat().st_mtime - self.path.stat().st_mtime > 3 * BEAT_EVERY_SECONDS:
            return
        report(f"an earlier start of this job is still at work on {holder.get('host')}; asking it to stop")
        end = time.monotonic() + EARLIER_ATTEMPT_MAY_TAKE_SECONDS
        while time.monotonic() < end and self._read().get("token") == holder.get("token") and _has_live_process(holder):
            ask_to_stop(self.path.parent, "preempted")
            time.sleep(0.5)

    def release(self) -> None:
        """Release the lock; do nothing if it was not acquired."""
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._thread = None
        with contextlib.suppress(OSError, UserError), self._alone():
            if self.is_held():
                self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_EVERY_SECONDS):
            try:
                os.utime(self.path)
            except OSError:
                continue  # the file system may be away for a moment; the run itself notices if it stays away

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}


def _is_earlier_attempt(holder: dict[str, Any]) -> bool:
    """Return whether the holder is an earlier attempt of this very Slurm job."""
    job, number = os.environ.get("SLURM_JOB_ID"), holder.get("life")
    return job is not None and holder.get("job") == job and isinstance(number, int) and number < attempt_number()


def _has_live_process(holder: dict[str, Any]) -> bool:
    """Return whether the holder's process is alive; for one on another machine, which cannot be seen, return True."""
    if holder.get("host") != socket.gethostname():
        return True
    try:
        process = psutil.Process(int(holder["pid"]))
        same = abs(process.create_time() - float(holder["process_started"])) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.Error, KeyError, ValueError, TypeError, OverflowError):
        return False


def _is_alive(holder: dict[str, Any], silence_seconds: float) -> bool:
    if _is_earlier_attempt(holder):
        return False
    return _has_live_process(holder) and (
        holder.get("host") == socket.gethostname() or silence_seconds < STALE_AFTER_SECONDS
    )
