"""Asking a run to stop by a file in its run dir, which needs no signal to get through.

Imports nothing heavy: whoever asks need not train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from launcher.files import write_atomic

STOP_FILE = "STOP"
"""Made by anyone in the run dir (`touch runs/x/STOP`). It may hold the reason."""

Reason = Literal["asked to stop", "time limit", "preempted", "interrupted"]
# A process may see another reason than its neighbour; the highest number is told.
REASONS: tuple[Reason | None, ...] = (None, "asked to stop", "time limit", "preempted", "interrupted")


def ask_to_stop(run_dir: Path, reason: Reason) -> None:
    """By the file. Seen half written, it would ask without its reason."""
    write_atomic(run_dir / STOP_FILE, reason)


def asked_by_file(path: Path) -> int:
    """The place in REASONS of what the file asks for; 0 where there is none."""
    try:
        reason = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return 0
    except OSError:  # being written this moment, or a folder by that name
        reason = ""
    return REASONS.index(reason) if reason in REASONS[2:] else 1
