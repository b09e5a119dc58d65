"""The stopping of a run by signals, a file, a deadline or its parent's death, after the same step on all processes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from launcher.files import write_json
from launcher.training.attempt import this_attempt
from launcher.training.stop_request import REASONS, STOP_FILE, Reason, asked_by_file

NOT_SAVED_EXIT_CODE = 1
"""Exit code of a run that ended without saving, after a second Ctrl-C."""
FIRST_CTRL_C = "Ctrl-C: stopping after this step, and saving; once more ends at once, without saving"
SECOND_CTRL_C = "Ctrl-C again: ended at once, without saving; the same command continues from the last checkpoint"
MARKER = "STOPPED.json"
STOP_FILE_LOOKED_FOR_EVERY_SECONDS = 0.25
SECONDS_TO_LEAVE = 5.0
"""Seconds kept free before a deadline, in addition to the longest of the recent steps and two saves."""
RECENT_STEPS = 100
"""Steps that are remembered: on a GPU, one that reads the losses lasts as long as all since the reading before it."""

_SIGNALS = {signal.SIGTERM: 3, signal.SIGUSR1: 3, signal.SIGUSR2: 3, signal.SIGINT: 4}
_LAUNCHER_DIED = 1
"""Number in place of a signal's, below all of _SIGNALS."""


@dataclasses.dataclass
class Interruption:
    """A context that watches for reasons to stop; signal handlers only record them, and the loop calls `agree`."""

    run_dir: Path
    is_main_process: bool
    num_processes: int
    stop_at: float | None = None
    """Unix time by which the state must be saved, in seconds."""
    leave_with_parent: bool = False
    """True to stop when the parent dies: launchers that do not forward a signal die of it, their children do not."""
    seconds_of_steps: deque[float] = dataclasses.field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    seconds_of_a_save: float = 0.0

    def __post_init__(self) -> None:
        self.asked_at: float | None = None
        """Time of SIGTERM or Ctrl-C by `time.monotonic`; other signals are warnings that come earlier."""
        self._noted = 0
        self._signal = 0
        self._pid = os.getpid()
        self._parent = os.getppid()
        self._before: dict[int, Any] = {}
        self._next_look = 0.0
        self._group: Any = None

    def __enter__(self) -> Interruption:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        if self.num_processes > 1 and dist.get_backend() != "gloo":
            # Processes agree over the CPUs: over the GPUs, every step would wait for the device.
            self._group = dist.new_group(backend="gloo")
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # A scheduler repeats its signal, and Python, which restores the default handlers while it exits, would be
            # killed by it.
            signal.signal(number, signal.SIG_IGN if self._noted else handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data worker, forked with this handler
            return
        if number == signal.SIGINT and self._noted == _SIGNALS[signal.SIGINT]:
            _write_at_once(f"{SECOND_CTRL_C}\n", self.is_main_process)
            os._exit(NOT_SAVED_EXIT_CODE)
        if number == signal.SIGINT and self._noted < _SIGNALS[signal.SIGINT]:
            _write_at_once(f"\n{FIRST_CTRL_C}\n", self.is_main_process)
        if self.asked_at is None and number in (signal.SIGTERM, signal.SIGINT):
            self.asked_at = time.monotonic()
        self._noted = max(self._noted, _SIGNALS[signal.Signals(number)])
        self._signal = number

    @property
    def signal_name(self) -> str | None:
        """The signal that asked to stop: that of this process or, after `agree`, of another; None without one."""
        if self._signal == _LAUNCHER_DIED:
            return "the launcher died"
        return signal.Signals(self._signal).name if self._signal else None

    def agree(self, save_is_due: bool = False) -> tuple[Reason | None, bool]:
        """Return the reason to stop, or None, and whether a save is due on any process.

        The result is the same on all processes, which must all call this at the same point.
        """
        mine = self._reason()
        reason, due, number = self._largest(mine, int(save_is_due), self._signal)
        self._signal = self._signal or number
        return REASONS[reason], bool(due)

    def anywhere(self, happened: bool) -> bool:
        """Return whether something happened on any process; all processes must call this at the same point."""
        return bool(self._largest(int(happened))[0])

    def _largest(self, *values: int) -> list[int]:
        """Return the largest of each value on all processes."""
        if self.num_processes == 1:
            return list(values)
        largest = torch.tensor(values)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self._group)
        return [int(value) for value in largest]

    def _reason(self) -> int:
        now = time.monotonic()
        if self.leave_with_parent and os.getppid() != self._parent:
            self._noted = max(self._noted, 3)
            self._signal = self._signal or _LAUNCHER_DIED
        if self.is_main_process and now >= self._next_look:
            self._next_look = now + STOP_FILE_LOOKED_FOR_EVERY_SECONDS
            self._noted = max(self._noted, asked_by_file(self.run_dir / STOP_FILE))
        if self.stop_at is not None:
            needed = max(self.seconds_of_steps, default=0.0) + 2 * self.seconds_of_a_save + SECONDS_TO_LEAVE
            if time.time() + needed >= self.stop_at:
                return max(self._noted, 2)
        return self._noted


def _write_at_once(line: str, speaks: bool) -> None:
    """Write to standard error from within a signal handler, where Python's own file objects may be in use."""
    if speaks:
        with contextlib.suppress(OSError):
            os.write(2, line.encode())


def write_marker(run_dir: Path, reason: Reason, signal_name: str | None, step: int) -> None:
    """Record in the run dir why the run stopped, for scripts that cannot see its exit code.

    Launchers turn the exit code into 1.
    """
    marker = {"reason": reason, "signal": signal_name, "step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    marker |= this_attempt()
    write_json(run_dir / MARKER, marker)


def clear_markers(run_dir: Path) -> None:
    """Remove the marker of a stopped run and the file that asked it to stop, as the run now goes on."""
    for name in (MARKER, STOP_FILE):
        (run_dir / name).unlink(missing_ok=True)
