"""What tests ask of a cluster: to submit, to look, to wait, and to do harm."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

DAEMONS = Path(__file__).with_name("slurm_daemons.py")
BEFORE = dict(os.environ)
"""Each test sets the environment back to what it was, and stories run beside them."""
AGE = 1.0
"""Seconds from one question to Slurm to the next, of a test that waits for a job."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


class Cluster:
    def __init__(self, folder: Path, daemons: subprocess.Popen[str], own_networks: bool) -> None:
        self.folder, self.daemons = folder, daemons
        outside = ("SLURM_", "SBATCH_", "SRUN_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "ACCELERATE_")
        environ = {name: value for name, value in BEFORE.items() if not name.startswith(outside)}
        self.environ = environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        pid = str(daemons.pid)
        self._answers: dict[str, tuple[float, dict[str, str]]] = {}
        self.inside = ("nsenter", "--target", pid, "--net", "--mount", "--uts") if own_networks else ()

    def run(
        self, *words: str, cwd: Path | None = None, check: bool = True, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        inside = (*self.inside, f"--wd={cwd or Path.cwd()}") if self.inside else ()
        return subprocess.run(
            [*inside, *words],
            cwd=cwd,
            env=self.environ | environ,
            capture_output=True,
            text=True,
            check=check,
            timeout=120,
        )

    def sbatch(self, *words: str, cwd: Path, **environ: str) -> str:
        """The id of the job."""
        try:
            return self.run("sbatch", "--parsable", *words, cwd=cwd, **environ).stdout.strip()  # type: ignore[arg-type]
        except subprocess.CalledProcessError as error:
            pytest.fail(f"sbatch: {error.stderr}")

    def job(self, job: str, age: float = 0.0) -> dict[str, str]:
        """What `scontrol show job` says, or said at most `age` seconds ago; there is no accounting.

        Asking costs about 36 ms of a core: tests that did so ten times a second spent 250 s of one on it.
        """
        asked, answer = self._answers.get(job, (-math.inf, {}))
        if time.monotonic() - asked > age:
            line = self.run("scontrol", "show", "job", "-o", job).stdout.splitlines()[0]
            answer = dict(re.findall(r"(\S+?)=(\S*)", line))
            self._answers[job] = time.monotonic(), answer
        return answer

    def wait(self, job: str, states: tuple[str, ...] = OVER, seconds: float = 900) -> dict[str, str]:
        def in_a_state() -> dict[str, str] | None:
            answer = self.job(job, AGE)
            return answer if answer["JobState"] in states else None

        return self.until(in_a_state, seconds)

    def until(self, look: Callable[[], dict[str, str] | bool | None], seconds: float = 900) -> dict[str, str]:
        """What `look` finds, once it finds something. The limit is only against a hang."""
        end = time.monotonic() + seconds
        while not (found := look()):
            if time.monotonic() > end:
                pytest.fail(f"waited {seconds} s in vain; {self.run('squeue', '--long', check=False).stdout}")
            time.sleep(0.1)
        return found if isinstance(found, dict) else {}

    def ask(self, line: str) -> str:
        """One of the words of daemons.py."""
        assert self.daemons.stdin
        assert self.daemons.stdout
        self.daemons.stdin.write(line + "\n")
        self.daemons.stdin.flush()
        return self.daemons.stdout.readline().strip()

    def processes(self, node: str) -> list[psutil.Process]:
        """Every process of the jobs on a node."""
        found = []
        for pid in self.ask(f"processes {node}").split():
            try:
                found.append(psutil.Process(int(pid)))
            except psutil.NoSuchProcess:
                continue
        return found


@contextmanager
def cluster(*options: str) -> Iterator[Cluster]:
    """A cluster for the time of a `with`; skips the test where Slurm is not installed."""
    path = f"{BEFORE['PATH']}:/usr/sbin"
    missing = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"Slurm is not installed ({', '.join(missing)}); on Debian: apt install slurm-wlm munge")
    own_networks = "--own-networks" in options
    if own_networks and os.geteuid() != 0:
        pytest.skip("networks of their own for the nodes need root")
    memory = Path("/dev/shm")  # noqa: S108 - not a file of that name: in memory
    parent = memory if os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="slurm.", dir=parent))
    folder.chmod(0o755)
    words = [sys.executable, str(DAEMONS), str(folder), *options]
    if own_networks:
        words = ["unshare", "--net", "--mount", "--uts", *words]
    # A session of its own: a signal to all of pytest's group must not end what is to clean up after it.
    daemons = subprocess.Popen(
        words, env=BEFORE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert daemons.stdin
    assert daemons.stdout
    try:
        if daemons.stdout.readline().strip() != "ready":
            pytest.fail("Slurm did not start")
        yield Cluster(folder, daemons, own_networks)
    finally:
        daemons.stdin.close()
        daemons.wait(timeout=30)
        daemons.stdout.close()
    assert daemons.returncode == 0
    assert not folder.exists()
