"""What happens to jobs: each story submits the real script, does harm, and waits for the job's end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from commands import ROOT, SUPPORT
from launcher.training.launch import usable_cpus
from slurm_cluster import AGE, Cluster, cluster

SCRIPT = ROOT / "slurm/train.sbatch"
ENVIRON = {
    "PYTHONPATH": f"{ROOT}:{SUPPORT}",
    "OMP_WAIT_POLICY": "PASSIVE",
    # The bits depend on the number of threads: told, so that each life of a job has as many. (Once, on a node whose
    # slurmd was started anew, a process had one thread where the others had two; why is not known.)
    "OMP_NUM_THREADS": str(usable_cpus()),
}
BIN = Path(sys.executable).parent


class Job:
    """A training job of tests/support/slow_steps.py in a folder of its own."""

    state: dict[str, str]
    """How Slurm saw it at its end."""

    def __init__(
        self, slurm: Cluster, folder: Path, *options: str, words: tuple[str, ...] = (), **environ: str
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.slurm, self.folder, self.run_dir = slurm, folder, folder / "run"
        words = words or (str(SUPPORT / "slow_steps.py"), "--workers", "1", "--no-report")
        path = f"{BIN}:{slurm.environ['PATH']}"
        environ = ENVIRON | {"PATH": path} | environ
        self.id = slurm.sbatch(*options, str(SCRIPT), *words, "--run-dir", str(self.run_dir), cwd=folder, **environ)

    @property
    def steps(self) -> int:
        """Steps done, by the file that tests/support/slow_steps.py keeps."""
        try:
            return (self.folder / "steps").stat().st_size
        except OSError:
            return 0

    def at_step(self, number: int) -> None:
        self.slurm.until(lambda: self.steps >= number or self.is_over())
        assert self.steps >= number, self.log

    def begins_again(self, restarts: int, steps: int) -> None:
        """Waits until it has done some steps since its last restart."""
        self.slurm.until(lambda: self.is_restarted(restarts) or self.is_over())
        self.at_step(self.steps + steps)

    def is_restarted(self, times: int) -> bool:
        answer = self.slurm.job(self.id, AGE)
        return answer["JobState"] == "RUNNING" and int(answer["Restarts"]) == times

    def is_over(self) -> bool:
        return self.slurm.job(self.id, AGE)["JobState"] not in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING")

    def end(self) -> dict[str, str]:
        return self.slurm.wait(self.id)

    @property
    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    @property
    def attempts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_dir / "LIVES.jsonl").read_text().splitlines()]

    def requeue_at_once(self) -> None:
        """Slurm keeps a requeued job waiting for cred_expire, 2 minutes as a rule: not here."""
        self.slurm.run("scontrol", "update", f"JobId={self.id}", "StartTime=now", check=False)


def unbroken(slurm: Cluster, folder: Path) -> Job:
    """What the others on two nodes are compared with."""
    return Job(slurm, folder, "--nodelist", "n[15-16]", "--nodes", "2", SECONDS_OF_A_STEP="0")


def harmed_four_times(_: Cluster, folder: Path) -> Job:
    """The warning before the time is up (--signal=B:USR1@180), which scancel can send, too; an operator's requeue; a
    preemption by a higher partition, without a time of grace; a process that is killed. In a cluster of its own, where
    no other story's jobs preempt."""
    with cluster("--nodes", "2", "--cpus", "4") as slurm:
        job = _harmed_four_times(slurm, folder)
        job.state = job.end()
        return job


def _harmed_four_times(slurm: Cluster, folder: Path) -> Job:
    where = ("--partition", "low", "--nodelist", "n[1-2]", "--nodes", "2", "--exclusive")
    job = Job(slurm, folder, *where, SECONDS_OF_A_STEP="0.5")
    job.at_step(1)
    slurm.run("scancel", "--batch", "--signal=USR1", job.id)
    job.begins_again(1, steps=1)
    slurm.run("scontrol", "requeue", job.id)
    job.begins_again(2, steps=1)
    slurm.sbatch("--partition", "high", "--nodelist", "n1", "--exclusive", "--wrap", "sleep 1", cwd=folder)
    job.begins_again(3, steps=3)  # a lost process ends the job unless a step was saved since the last start
    hold = folder / "hold"
    hold.touch()
    ranks = [process for process in slurm.processes("n2") if "-u" in process.cmdline()]
    assert ranks, job.log
    ranks[0].kill()
    hold.unlink()
    return job


def warned_while_it_starts(slurm: Cluster, folder: Path) -> Job:
    """The warning comes while the processes are still importing torch."""
    job = Job(slurm, folder, "--nodelist", "n3")
    slurm.until(lambda: (folder / "run/LIVES.jsonl").exists())
    slurm.run("scancel", "--batch", "--signal=USR1", job.id)
    return job


def preempted_with_grace(slurm: Cluster, folder: Path) -> Job:
    """The step alone is told, and Slurm takes a job that then ends for finished: it must requeue itself."""
    job = Job(slurm, folder, "--partition", "graceful", "--nodelist", "n8", "--exclusive")
    job.at_step(5)
    slurm.sbatch("--partition", "high", "--nodelist", "n8", "--exclusive", "--wrap", "sleep 1", cwd=folder)
    return job


def out_of_time(slurm: Cluster, folder: Path) -> Job:
    """Slurm's shortest time is a minute; it may warn half a minute early, and the run looks at the clock itself."""
    job = Job(slurm, folder, "--time=1", "--signal=B:USR1@1", "--nodelist=n9", SECONDS_OF_A_STEP="5")
    slurm.wait(job.id)
    return job


def canceled(slurm: Cluster, folder: Path) -> Job:
    job = Job(slurm, folder, "--nodelist", "n[12-13]", "--nodes", "2")
    job.at_step(4)
    slurm.run("scancel", job.id)
    return job


def not_a_number(slurm: Cluster, folder: Path) -> Job:
    return Job(slurm, folder, "--nodelist", "n14", words=(f"{SUPPORT}/slow_steps.py:parity", "optim.lr=1e30"))


def daemon_killed(_: Cluster, folder: Path) -> Job:
    """A node's slurmd dies while its processes work on; Slurm finds out, and requeues the job."""
    with cluster("--nodes", "2", "--conf", "SlurmdTimeout=5") as slurm:
        job = Job(slurm, folder, "--nodelist", "n[1-2]", "--nodes", "2", SECONDS_OF_A_STEP="5")
        job.at_step(2)
        slurm.ask("kill-daemon n2")
        slurm.until(lambda: slurm.job(job.id, AGE)["Restarts"] == "1")
        slurm.ask("start n2")
        job.state = job.end()
        job.requeue_at_once()
        return job


STORIES = (
    harmed_four_times,
    out_of_time,
    daemon_killed,
    unbroken,
    warned_while_it_starts,
    preempted_with_grace,
    canceled,
    not_a_number,
)
"""The longest first."""
