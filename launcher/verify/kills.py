"""The test of exact resume: a run that is killed at random moments and started again, until it has ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.training.attempt import newest_step

POLL_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class Kill:
    """A kill: the time since the run had taken its lock, and the newest checkpoint at that moment."""

    after_seconds: float
    newest: str


def run_with_kills(
    command: Sequence[str], run_dir: Path, *, kills: int, longest_seconds: float, draw: random.Random, log: Path
) -> list[Kill]:
    """Start a command until it ends, and SIGKILL all its processes at a random moment of the first `kills` starts.

    A moment is drawn uniformly between the start of training (the run's lock is there) and `longest_seconds` later.
    Output goes to `log`. Returns the kills. Raises RuntimeError if the command fails by itself.
    """
    done: list[Kill] = []
    while True:
        process = _start(command, log)
        wait_seconds = draw.uniform(0, longest_seconds) if len(done) < kills else None
        if _ended(process, run_dir, wait_seconds):
            if process.returncode != 0:
                last = "\n".join(log.read_text(errors="replace").splitlines()[-200:])
                raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}:\n{last}")
            return done
        _kill_session(process.pid)
        process.wait()
        newest = max((path.name for path in (run_dir / "checkpoints").glob("step-*")), default="none")
        done.append(Kill(round(wait_seconds or 0.0, 2), newest))


def run_until_killed(command: Sequence[str], run_dir: Path, *, at_step: int, log: Path) -> bool:
    """Start a command and SIGKILL all its processes once a checkpoint of `at_step` or later is there.

    Returns False if the run ended by itself before.
    """
    process = _start(command, log)
    while process.poll() is None:
        if newest_step(run_dir) >= at_step:
            _kill_session(process.pid)
            process.wait()
            return not (run_dir / "final").exists()
        time.sleep(POLL_SECONDS / 4)
    return False


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("a") as output:
        return subprocess.Popen(  # noqa: S603 - the caller's own command
            list(command), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def _ended(process: subprocess.Popen[bytes], run_dir: Path, wait_seconds: float | None) -> bool:
    """Wait until the process ends by itself (True), or has trained for `wait_seconds` (False)."""
    before = _lock_of(run_dir)
    trains_since: float | None = None
    while process.poll() is None:
        now = time.monotonic()
        if trains_since is None and _lock_of(run_dir) not in (None, before):
            trains_since = now
        if wait_seconds is not None and trains_since is not None and now - trains_since >= wait_seconds:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _lock_of(run_dir: Path) -> str | None:
    try:
        return (run_dir / "LOCK").read_text()
    except OSError:
        return None


def _kill_session(leader: int) -> None:
    """SIGKILL a process and all its descendants, as torch's launchers put the processes into groups of their own."""
    import psutil

    try:
        family = psutil.Process(leader).children(recursive=True)
    except psutil.Error:
        family = []
    for process in (leader, *(child.pid for child in family)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    # A process is dead only when its memory is gone, and may still be writing until then.
    psutil.wait_procs(family, timeout=60)


def launch_command(recipe: str, run_dir: Path, *words: str, processes: int = 1) -> list[str]:
    """Return the command that trains a recipe with `processes` processes on this machine's CPUs or GPUs.

    It writes no report, as only the training is of interest here.
    """
    head = [sys.executable, "-m"]
    if processes > 1:
        head += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return [*head, "launcher", recipe, *words, "--no-report", "--run-dir", str(run_dir)]
