"""Runs in processes of their own that are looked at, and signalled, while they live."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import ROOT

BIN = Path(sys.executable).parent


ACCELERATE = ["accelerate", "launch", "--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1"]


MARK = "STARTED_BY_TEST_FOR"


STARTS = {
    "python": [sys.executable],
    "accelerate, 1 process": [*ACCELERATE, "--num_processes", "1"],
    "accelerate, 2 processes": [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    "torchrun, 2 processes": ["torchrun", "--standalone", "--nproc_per_node", "2"],
}


def start(way: str, run_dir: Path, recipe: str = "tests/support/slow_steps.py") -> subprocess.Popen[str]:
    first, *rest = STARTS[way]
    command = [first if first == sys.executable else str(BIN / first), *rest, "-m", "launcher", recipe]
    command += ["--workers", "1", "--no-report", "--run-dir", str(run_dir)]
    with (run_dir.parent / "output.txt").open("a") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {MARK: str(run_dir)},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def wait_for(condition: object, what: str, process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    pytest.fail(f"waited {seconds} s in vain for {what}")


def steps_reported(run_dir: Path) -> int:
    """Steps that the run has done, by the file that tests/support/slow_steps.py keeps."""
    try:
        return int((run_dir.parent / "steps").stat().st_size)
    except OSError:
        return 0


def processes_of(run_dir: Path) -> list[int]:
    """Living processes that were started for a run, by process id: launcher, ranks, data workers.

    Found by what `start` left in their environment: torch's launchers give each rank a session of its own, and the
    children of one that died have another parent.
    """
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = environ.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"{MARK}={run_dir}".encode() in variables:  # that of a zombie is empty
            found.append(int(environ.parent.name))
    return found
