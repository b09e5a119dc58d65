"""Requests to stop a run by a file in its run dir, which works where no signal gets through, and how it then ends.

The module imports nothing heavy, because a program that asks a run to stop need not be able to train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from launcher.files import write_atomic

STOP_FILE = "STOP"
"""Name of a file that anyone may create in the run dir (`touch runs/x/STOP`), and that may hold the reason."""

Reason = Literal["asked to stop", "time limit", "preempted", "interrupted"]
# Processes may see different reasons; the one with the highest index is reported.
REASONS: tuple[Reason | None, ...] = (None, "asked to stop", "time limit", "preempted", "interrupted")


STOPPED_EXIT_CODE = 85
"""Exit code of a run that saved and stopped before its end; the same command continues it.

Shells, Python and torch's launchers do not use this code.
"""
INTERRUPTED_EXIT_CODE = 130
"""Exit code of a run that saved and stopped after Ctrl-C."""


class StoppedError(Exception):
    """The run was asked to stop."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        self.exit_code = INTERRUPTED_EXIT_CODE if reason == "interrupted" else STOPPED_EXIT_CODE
        super().__init__(reason)


def ask_to_stop(run_dir: Path, reason: Reason) -> None:
    """Ask a run to stop by the file, which is written atomically: half-written, it would lack the reason."""
    write_atomic(run_dir / STOP_FILE, reason)


def asked_by_file(path: Path) -> int:
    """Return the index in REASONS of the reason in the file, or 0 if there is no file."""
    try:
        reason = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return 0
    except OSError:  # it is being written at this moment, or is a folder
        reason = ""
    return REASONS.index(reason) if reason in REASONS[2:] else 1
