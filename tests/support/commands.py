"""Commands of the launcher, run in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SUPPORT = Path(__file__).parent
TINY = ("--recipe", str(SUPPORT / "tiny.py"))
"""What commands need for a run whose parts are those of tiny.py, or lie beside it."""


class CliResult(NamedTuple):
    code: int
    out: str
    err: str


RunCli = Callable[..., CliResult]


def run_python(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> CliResult:
    """Run Python with the launcher of this checkout, as no process of any launcher."""
    told = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "ACCELERATE_", "SLURM_", "PMI_", "OMPI_", "TORCHELASTIC_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    environ = clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | dict(env or {})
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=540)  # only against a hang; just under pytest's own limit
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)  # with its DataLoader workers
        process.wait()
        raise
    return CliResult(process.returncode, out, err)
