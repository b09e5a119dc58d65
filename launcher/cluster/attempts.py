"""Attempts at a run under Slurm: each start and each end is a row in LIVES.jsonl, from which all else follows.

A job may be started many times (preempted, out of time, a node lost). Whether it should be started once more depends on
why it ended and on whether the last attempt made progress. Both are read from the run dir, because the exit code of a
launcher is 1 whatever happened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from launcher.errors import UserError
from launcher.training.attempt import this_attempt

ATTEMPTS_FILE = "LIVES.jsonl"
ATTEMPTS_WITHOUT_PROGRESS = 3
"""Number of attempts in a row, each preempted before it could save anything new, that ends a job."""

Cause = Literal["finished", "asked to stop", "preempted", "time limit", "interrupted", "error", "out of memory", "lost"]
CONTINUE = ("preempted", "time limit")
# Errors that a process reports when another one has gone, which are no cause by themselves.
_PEER_IS_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket timeout",
    "recvvalue failed",
    "nccl",
    "sendbytes failed",
    "failed to recv",
    "timed out waiting",
    "connectfullmesh failed",
)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """End of an attempt, and whether the job is to be started again."""

    cause: Cause
    why: str
    retry: bool


def job_name(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the name by which Slurm's commands know this job, or None outside of a job.

    A task of an array is named by array and index, because the last task has the array's own job id, by which `scontrol
    requeue` would requeue all of them.
    """
    if environ.get("SLURM_ARRAY_JOB_ID") and environ.get("SLURM_ARRAY_TASK_ID"):
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def append(run_dir: Path, row: Mapping[str, Any]) -> None:
    """Append one row, in one write: several jobs may write to the same file."""
    entry = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")} | dict(row)
    with (run_dir / ATTEMPTS_FILE).open("ab") as file:
        file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def record_failure(run_dir: Path, error: Exception, environ: Mapping[str, str] = os.environ) -> None:
    """Record in the run dir what ended this process, for `job end` and `status`.

    Nothing is recorded unless the batch script of a job has announced this attempt there: a mistake leaves any other
    run dir as it is. An error that all processes see alike is recorded by the main process only.
    """
    if not any(row.get("event") == "begin" and is_of(row, this_attempt(environ)) for row in rows_of(run_dir)):
        return
    if isinstance(error, UserError):
        row = {"kind": "mistake", "why": "; ".join(error.problems)}
    else:
        names = {cls.__name__ for cls in type(error).__mro__}
        kind = "out of memory" if names & {"OutOfMemoryError", "MemoryError"} else "crash"
        first = (str(error).strip().splitlines() or [""])[0]
        row = {"kind": kind, "why": f"{type(error).__name__}: {first}"}
    process = environ.get("RANK", "0")
    if process != "0" and (row["kind"] == "mistake" or _is_peer_gone(row)):
        return
    with contextlib.suppress(OSError):  # a full disk must not hide the error itself
        append(run_dir, {"event": "failure", **this_attempt(environ), "process": process, **row})


def is_of(row: Mapping[str, Any], attempt: Mapping[str, Any]) -> bool:
    """Return whether a row, lock or marker was written in this attempt."""
    return all(row.get(key) == value for key, value in attempt.items())


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """Return all rows, oldest first, without those that a crash of the machine cut off."""
    try:
        lines = (run_dir / ATTEMPTS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def verdict_of(
    *,
    finished: bool,
    canceled: bool,
    stopped: str | None,
    failures: Sequence[Mapping[str, Any]],
    exit_code: int,
    steps_of_attempts: Sequence[tuple[int, int]],
) -> Verdict:
    """Return how an attempt ended, and whether another one makes sense.

    `stopped` is the reason in the run's marker, `failures` are the rows in which the processes reported errors during
    this attempt, and `steps_of_attempts` holds (step at the start, step at the end) for each attempt of the job, with
    this one last.
    """
    if finished:
        return Verdict("finished", "the run is finished", False)
    first, last = steps_of_attempts[-1]
    if stopped in CONTINUE:
        cause: Cause = "time limit" if stopped == "time limit" else "preempted"
        if canceled:
            return Verdict(cause, f"saved at step {last}; the job was told to end: Slurm decides what is next", False)
        stood = _attempts_without_progress(steps_of_attempts)
        if stood >= ATTEMPTS_WITHOUT_PROGRESS:
            return Verdict(cause, f"{stood} attempts in a row ended at step {last}; ask for more time", False)
        return Verdict(cause, f"saved at step {last}", True)
    if stopped is not None:
        return Verdict("interrupted" if stopped == "interrupted" else "asked to stop", f"saved at step {last}", False)
    causes = [row for row in failures if not _is_peer_gone(row)]
    if causes:
        kind: Cause = "out of memory" if any(row.get("kind") == "out of memory" for row in causes) else "error"
        return Verdict(kind, str(causes[0].get("why", "")), False)
    if canceled:
        return Verdict("lost", f"ended from outside at step {last} (canceled, or out of time)", False)
    how = "the others lost the connection to it" if failures else f"exit code {exit_code}"
    if last > first:
        return Verdict("lost", f"a process or node was lost after step {last} ({how})", True)
    return Verdict("lost", f"a process or node was lost, and nothing was saved since step {first} ({how})", False)


def _is_peer_gone(row: Mapping[str, Any]) -> bool:
    why = str(row.get("why", "")).lower()
    return row.get("kind") == "crash" and any(words in why for words in _PEER_IS_GONE)


def _attempts_without_progress(steps: Sequence[tuple[int, int]]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda attempt: attempt[1] <= attempt[0], reversed(steps)))
