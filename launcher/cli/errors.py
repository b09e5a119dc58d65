"""The error messages of commands."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence

SECONDS_FOR_MAIN_PROCESS = 10.0
"""The time that another process with a problem waits for the main process, which is likely to find the same one."""


FIELDS = ("overrides", "varied")
"""The names of commands' arguments that set fields of the recipe."""

LONGEST_LINE = 3_000
"""The most characters of a problem; the middle of a longer one, most often a value that was given, is left out."""


def usage_problem(error: Exception) -> str:
    """Return the message of typer's usage error, with a hint for an unknown option."""
    message = str(error.format_message()).replace("Value error, ", "")  # type: ignore[attr-defined]
    if message.startswith("No such option"):
        message = message.partition(" (Possible")[0].rstrip(".")
        context = getattr(error, "ctx", None)
        name = str(context.info_name) if context is not None and context.parent is not None else "train"
        takes_fields = context is None or any(argument.name in FIELDS for argument in context.command.params)
        hint = "fields of the recipe are set without dashes: optim.lr=3e-4; " if takes_fields else ""
        return f"{message}; {hint}all options: python -m launcher {name} --help"
    return message


def report_problems(problems: Sequence[str]) -> None:
    """Write one line for each problem, from the main process, or from another one if the main one reports nothing.

    Most problems are found by all processes of a run. The launcher (torchrun, accelerate, srun) ends the others as soon
    as the main process has reported and left; one that is still there after a while reports by itself.
    """
    rank = next((os.environ[name] for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK") if name in os.environ), "0")
    if "SLURM_STEP_ID" in os.environ and "RANK" not in os.environ:
        rank = os.environ.get("SLURM_PROCID", rank)
    if rank not in ("", "0"):
        time.sleep(SECONDS_FOR_MAIN_PROCESS)
    who = "" if rank in ("", "0") else f"[process {rank} on {socket.gethostname()}] "
    # One write for all lines: torchrun starts Python unbuffered, and the lines of several processes would mix.
    sys.stderr.write("".join(f"error: {who}{_shown(problem)}\n" for problem in problems))
    sys.stderr.flush()


def _shown(problem: str) -> str:
    """Return a problem as a terminal may show it: on one line, of a readable length, unprintable characters escaped.

    These would move the cursor, or colour or reorder the text.
    """
    line = " ".join(problem.split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE - 500]} ... {line[-450:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def record_for_torchrun(error: Exception) -> None:
    """Record an error, so that torchrun and accelerate launch show the traceback of the process that failed first."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
