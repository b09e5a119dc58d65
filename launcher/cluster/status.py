"""State of a run: its job, its step, its attempts, and why each of them ended."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.cluster import slurm
from launcher.cluster.attempts import rows_of
from launcher.cluster.slurm import JobState, job_state
from launcher.errors import UserError
from launcher.files import refuse_endless
from launcher.text import one_line, plural, without_controls
from launcher.training.attempt import newest_step, planned_steps
from launcher.training.run_lock import RunLock

LOOK_EVERY_SECONDS = 1.0
CLEAN_STOP_SECONDS = 120.0
"""Time that a run may take to save and stop before its job is canceled."""


@dataclasses.dataclass(frozen=True)
class Status:
    """State of a run, from its folder and from Slurm."""

    run_dir: Path
    state: str
    """State in a word: finished, running, waiting, stopped, failed, ..."""
    why: str
    step: int
    """Newest step that is saved."""
    job: JobState | None
    attempts: tuple[dict[str, Any], ...]
    """Rows of LIVES.jsonl."""
    steps: int | None = None
    """Number of steps of the whole run, or None before it has begun."""
    may_end_early: bool = False
    """True if a phase with patience may leave some of the steps out."""

    @property
    def progress(self) -> str:
        """Progress in words: "step 120 of 400"."""
        if self.steps is None:
            return f"step {self.step}"
        return f"step {self.step} of {'at most ' if self.may_end_early else ''}{self.steps}"

    starts: int = 0
    """Number of starts that have begun to train, on a cluster or not, as recorded in log.txt."""

    @property
    def restarts(self) -> int:
        """Number of restarts, from the attempts and the starts."""
        begins = [row for row in self.attempts if row.get("event") == "begin"]
        return max(0, len(begins) - 1, self.starts - 1)


def find(run: str) -> tuple[Path, JobState | None]:
    """Return the run dir and its newest job, for a run dir ("runs/x") or a job's id.

    Raises:
        UserError: `run` is neither, or a job that has not reported its run dir.
    """
    path = Path(run)
    if path.is_dir():
        refuse_endless(path)
        jobs = _jobs_of(path)[::-1]
        # In a chain, the job that runs says more than those that wait for it.
        return path, next((job for job in jobs if job.state in slurm.RUNS), jobs[0] if jobs else None)
    job = job_state(run)
    if job is not None and job.run_dir is not None:
        return job.run_dir, job
    if job is not None:
        raise UserError(f"{run}: a job that has not told its run dir; give the run dir")
    raise UserError(
        f"{run}: neither a run dir nor a job that Slurm knows (it forgets a job some minutes after its end)"
    )


def _jobs_of(run_dir: Path) -> list[JobState]:
    """Return the run's jobs that Slurm still knows, the oldest first."""
    names = dict.fromkeys(str(row["name"]) for row in rows_of(run_dir) if row.get("name"))
    return [job for job in map(job_state, names) if job is not None]


def status_of(run: str) -> Status:
    """Return the state of a run.

    Raises:
        UserError: `find` raises it.
    """
    run_dir, job = find(run)
    rows = rows_of(run_dir)
    state, why = _state(run_dir, job, rows)
    steps, may_end_early = planned_steps(run_dir) or (None, False)
    attempts = tuple({key: _shown(value) for key, value in row.items()} for row in rows)
    step, starts = newest_step(run_dir), _starts(run_dir)
    return Status(run_dir, state, one_line(why), step, job, attempts, steps, may_end_early, starts)


def _shown(value: object) -> object:
    """Return a value of a run dir without anything that a terminal would obey."""
    return one_line(value) if isinstance(value, str) else value


_BEGINS = re.compile(r"^\S+ \S+  .*: [\d,]+ training and [\d,]+ validation images, ", re.MULTILINE)
"""Line with which each start of a run begins in log.txt."""


def _starts(run_dir: Path) -> int:
    try:
        return len(_BEGINS.findall((run_dir / "log.txt").read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return 0


def _state(run_dir: Path, job: JobState | None, rows: list[dict[str, Any]]) -> tuple[str, str]:
    ends = [row for row in rows if row.get("event") in ("end", "failure")]
    last = str(ends[-1].get("why", "")) if ends else ""
    if (run_dir / "final/metrics.json").is_file():
        return "finished", ""
    if job is not None and job.state in slurm.RUNS:
        return "running", f"on {job.nodes}" if job.nodes else ""
    if job is not None and job.state in slurm.WAITS:
        return "waiting", " ".join(filter(None, [job.reason, f"after: {last}" if last else ""]))
    if RunLock(run_dir).has_owner() and job is None:
        return "running", "by its lock"
    if ends and (ends[-1].get("event") == "failure" or ends[-1].get("cause") in ("error", "out of memory", "lost")):
        return "failed", last
    try:
        stopped = json.loads((run_dir / "STOPPED.json").read_text())
        return "stopped", str(stopped.get("reason", ""))
    except (OSError, ValueError, AttributeError):
        return (job.state.lower() if job else "not finished"), last


def follow(run: str, keep_on: bool) -> Iterator[str]:
    """Yield the log of a run's job, or of the run if there is no job; with `keep_on`, go on until it is over.

    Raises:
        UserError: There is no log yet, and `keep_on` is False.
    """
    run_dir, job = find(run)
    path = job.log if job is not None and job.log is not None and job.log.exists() else run_dir / "log.txt"
    if not path.exists() and not keep_on:
        raise UserError(f"{path}: there is no log yet; --follow waits for it")
    position = 0
    while True:
        over = _is_over(run_dir, job)  # before reading: what was written until now is read below
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                content = file.read()
            position += len(content)
            if content:
                # a job may print control characters
                yield without_controls(content.decode("utf-8", "replace").replace("\r", "\n"))
        if over or not keep_on:
            return
        time.sleep(LOOK_EVERY_SECONDS)


def _is_over(run_dir: Path, job: JobState | None) -> bool:
    if job is None:
        return not RunLock(run_dir).has_owner()
    now = job_state(job.job)
    return now is None or now.is_over


def stop_and_cancel(run: str, at_once: bool) -> str:
    """Ask the run to save and stop, then cancel its jobs, and describe what was done."""
    run_dir, _ = find(run)
    jobs = [job for job in _jobs_of(run_dir) if not job.is_over]
    for job in jobs:
        if job.state in slurm.WAITS:
            slurm.cancel(job.job)
    running = [job for job in jobs if job.state in slurm.RUNS]
    if not running:
        if RunLock(run_dir).has_owner() and not jobs:
            (run_dir / "STOP").touch()
            return f"{run_dir}: asked to save and stop"
        if not jobs:
            return f"{run_dir}: nothing to cancel: no job of it waits or runs, and no process here trains in it"
        return f"{run_dir}: {plural(len(jobs), 'waiting job')} canceled"
    if not at_once:
        end = time.monotonic() + CLEAN_STOP_SECONDS
        (run_dir / "STOP").touch()
        while time.monotonic() < end:
            if all(_is_over(run_dir, job) for job in running):
                return f"{run_dir}: stopped at step {newest_step(run_dir)}, saved; the same command continues"
            time.sleep(LOOK_EVERY_SECONDS)
    for job in running:
        slurm.cancel(job.job)
    return f"{run_dir}: canceled"
