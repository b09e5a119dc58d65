"""Requests to Slurm: to take a job, to report its state, to cancel it."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.errors import UserError

ASK_SECONDS = 60.0
"""Time to wait for a busy controller."""
WAITS = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")
RUNS = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING")


@dataclasses.dataclass(frozen=True)
class JobState:
    """State of a job, as Slurm sees it now."""

    job: str
    state: str
    reason: str
    restarts: int
    nodes: str
    log: Path | None
    run_dir: Path | None
    """Run dir that the job has reported, or None if it has not started."""

    @property
    def is_over(self) -> bool:
        """True if the job neither waits nor runs."""
        return self.state not in (*WAITS, *RUNS)


def has_slurm() -> bool:
    """Return whether Slurm is installed here."""
    return shutil.which("sbatch") is not None


def job_state(job: str) -> JobState | None:
    """Return the state of a job, or None if Slurm does not know it.

    Slurm forgets jobs some minutes after their end (MinJobAge).
    """
    if not re.fullmatch(r"\d+(_\d+)?", job) or shutil.which("scontrol") is None:
        return None
    done = _ask(["scontrol", "show", "job", "-o", job])
    if done.returncode != 0 or not done.stdout.strip():
        return None
    line = done.stdout.splitlines()[0]
    log, comment = _field(line, "StdOut"), _field(line, "Comment")
    return JobState(
        job=job,
        state=_field(line, "JobState"),
        reason=_field(line, "Reason"),
        restarts=int(_field(line, "Restarts") or 0),
        nodes=_field(line, "NodeList").replace("(null)", ""),
        log=Path(log) if log else None,
        run_dir=Path(comment.removeprefix("run_dir=")) if comment.startswith("run_dir=") else None,
    )


def _field(line: str, name: str) -> str:
    """Return a value from scontrol's line of Name=value pairs.

    The value may hold spaces, and ends where the next name begins.
    """
    match = re.search(rf"(?:^| ){name}=(.*?)(?= [A-Z][A-Za-z:/]*=|\s*$)", line)
    return match[1].rstrip() if match else ""


_NO_CONTROLLER = ("resolve_ctls", "Could not establish a configuration source", "Unable to contact slurm controller")
"""Messages of Slurm's programs if no slurm.conf, or no slurmctld, can be found."""


def sbatch(options: Sequence[str], words: Sequence[str], environ: Mapping[str, str]) -> str:
    """Submit a job, and return its id.

    Raises:
        UserError: Slurm is not here, or refuses the job; the message holds Slurm's own.
    """
    if not has_slurm():
        raise UserError("sbatch: not found, so Slurm is not installed here; --dry-run shows what would be submitted")
    done = _ask(["sbatch", "--parsable", *options, *words], environ)
    if done.returncode != 0:
        message = " ".join(done.stderr.replace("sbatch: error: ", "").split())
        if any(sign in message for sign in _NO_CONTROLLER):
            raise UserError(
                "sbatch: is here, but finds no Slurm controller (slurmctld): submit from a login node of the cluster, "
                f"or ask its administrators; --dry-run shows what would be submitted ({message})"
            )
        raise UserError(f"sbatch: {message or f'exit code {done.returncode}'}")
    return done.stdout.strip().partition(";")[0]


def cancel(job: str) -> None:
    """Cancel a job.

    Raises:
        UserError: Slurm refuses.
    """
    done = _ask(["scancel", job])
    if done.returncode != 0:
        raise UserError(f"scancel {job}: {' '.join(done.stderr.split())}")


def _ask(command: list[str], environ: Mapping[str, str] = os.environ) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - no shell; the words are passed as they are
            command, capture_output=True, text=True, check=False, timeout=ASK_SECONDS, env=dict(environ)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]}: no answer from Slurm ({error})") from error
