"""Bookkeeping for a batch script, at the beginning and at the end of each attempt of its job."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.cluster.attempts import CONTINUE, Verdict, append, is_of, job_name, rows_of, verdict_of
from launcher.errors import UserError
from launcher.training.attempt import newest_step, this_attempt


def begin(run_dir: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Record that an attempt begins.

    Raises:
        UserError: The job belongs to a chain whose last job ended for good, or the run dir cannot be written to.
    """
    chain = environ.get("LAUNCHER_CHAIN")
    if chain:
        ends = [row for row in rows_of(run_dir) if row.get("event") == "end" and row.get("chain") == chain]
        if ends and not _goes_on(ends[-1]):
            raise UserError(
                f"{run_dir}: the job before in this chain ({ends[-1].get('job')}) ended for good: "
                f"{ends[-1].get('cause')}: {ends[-1].get('why')}"
            )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        row = {"event": "begin", **this_attempt(environ), "name": job_name(environ), "step": newest_step(run_dir)}
        row |= {"nodes": environ.get("SLURM_JOB_NODELIST"), "host": socket.gethostname(), "chain": chain}
        append(run_dir, row)
    except OSError as error:
        raise UserError(
            f"--run-dir {run_dir}: cannot write there ({error.strerror}); choose a folder that is"
        ) from error


def end(run_dir: Path, exit_code: int, canceled: bool, environ: Mapping[str, str] = os.environ) -> Verdict:
    """Record how this attempt ended, and return that and whether there is to be another."""
    mine, rows = this_attempt(environ), rows_of(run_dir)
    failures = [row for row in rows if row.get("event") == "failure" and is_of(row, mine)]
    verdict = verdict_of(
        finished=(run_dir / "final/metrics.json").is_file(),
        canceled=canceled,
        stopped=_marker(run_dir, mine),
        failures=failures,
        exit_code=exit_code,
        steps_of_attempts=_steps_of_attempts(rows, mine, newest_step(run_dir)),
    )
    row = {"event": "end", **mine, "name": job_name(environ), "step": newest_step(run_dir)}
    row |= {
        "cause": verdict.cause,
        "why": verdict.why,
        "again": verdict.retry,
        "chain": environ.get("LAUNCHER_CHAIN"),
    }
    append(run_dir, row)
    return verdict


def _goes_on(end_row: Mapping[str, Any]) -> bool:
    return bool(end_row.get("again") or end_row.get("cause") in (*CONTINUE, "finished"))


def _marker(run_dir: Path, mine: Mapping[str, Any]) -> str | None:
    """Return the reason in the run's marker, if this attempt has written it."""
    try:
        stopped = json.loads((run_dir / "STOPPED.json").read_text())
        return str(stopped["reason"]) if is_of(stopped, mine) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _steps_of_attempts(rows: list[dict[str, Any]], mine: Mapping[str, Any], step: int) -> list[tuple[int, int]]:
    """Return (step at the start, step at the end) for each attempt of this job.

    An attempt whose end was not recorded, because its node was lost, ended where the next one began.
    """
    starts = {
        row["life"]: int(row.get("step", 0))
        for row in rows
        if row.get("event") == "begin" and row.get("job") == mine["job"] and isinstance(row.get("life"), int)
    }
    begins = [starts[number] for number in sorted(starts) if number <= mine["life"]] or [0]
    return list(zip(begins, [*begins[1:], step], strict=True))
