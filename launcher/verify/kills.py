"""Killing a run at random moments and starting it again, until it has ended: the test of exact resume."""

from __future__ import annotations

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
    """One kill: how long after the run had taken its lock, and what the newest checkpoint then was."""

    after_seconds: float
    newest: str


def run_with_kills(
    command: Sequence[str], run_dir: Path, *, kills: int, longest_seconds: float, draw: random.Random, log: Path
) -> list[Kill]:
    """Start `command` again and again; SIGKILL all its processes at a random moment, `kills` times or until it ends.

    A moment is drawn evenly between the start of training (the run's lock is there) and `longest_seconds` later. The
    last start is left alone. Output goes to `log`. Raises RuntimeError where the command fails by itself.
    """
    done: list[Kill] = []
    while True:
        with log.open("a") as output:
            process = subprocess.Popen(  # noqa: S603 - the caller's own command
                list(command), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
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
    """Start `command` and SIGKILL all its processes once a checkpoint of `at_step` or later is there.

    False where it ended by itself before.
    """
    with log.open("a") as output:
        process = subprocess.Popen(  # noqa: S603 - the caller's own command
            list(command), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    while process.poll() is None:
        if newest_step(run_dir) >= at_step:
            _kill_session(process.pid)
            process.wait()
            return not (run_dir / "final").exists()
        time.sleep(POLL_SECONDS / 4)
    return False


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
    """SIGKILL every process of a session: torch's launchers put the ranks in groups of their own."""
    import psutil

    try:
        family = psutil.Process(leader).children(recursive=True)
    except psutil.Error:
        family = []
    for process in (leader, *(child.pid for child in family)):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
    # Only now: a rank has died when its memory is gone, and until then may still be writing.
    psutil.wait_procs(family, timeout=60)


def launch_command(recipe: str, run_dir: Path, *words: str, processes: int = 1) -> list[str]:
    """The command that trains `recipe` on this machine's CPUs or GPUs with so many processes; what it looks at is the
    training, so there is no report."""
    head = [sys.executable, "-m"]
    if processes > 1:
        head += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return [*head, "launcher", recipe, *words, "--no-report", "--run-dir", str(run_dir)]
