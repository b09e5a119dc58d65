"""The command line: `python -m launcher RECIPE [OVERRIDES]... [OPTIONS]`.

A UserError becomes one line for each of its problems, and exit code 2. Any other error is a bug of the launcher and
keeps its traceback.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence

import typer

from launcher.cli import advise as advise
from launcher.cli import average as average
from launcher.cli import cache as cache
from launcher.cli import cancel as cancel
from launcher.cli import compare as compare
from launcher.cli import evaluate as evaluate
from launcher.cli import export as export
from launcher.cli import fetch as fetch
from launcher.cli import find_lr as find_lr
from launcher.cli import init as init
from launcher.cli import job as job
from launcher.cli import logs as logs
from launcher.cli import plan as plan
from launcher.cli import predict as predict
from launcher.cli import prepare as prepare
from launcher.cli import rehearse as rehearse
from launcher.cli import report as report
from launcher.cli import status as status
from launcher.cli import submit as submit
from launcher.cli import sweep as sweep
from launcher.cli import train as train
from launcher.cli import verify as verify
from launcher.cli.app import app, command_names
from launcher.cli.errors import record_for_torchrun, report_problems, usage_problem
from launcher.cli.home import settle_home
from launcher.compat import click_error
from launcher.console import lost_output
from launcher.errors import UserError

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it: 128 + SIGINT."""


def main(arguments: Sequence[str]) -> int:
    """Run one command, and return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as for stderr: file names need not be text that it can encode
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(arguments)
    if words and words[0] not in (*command_names(), "--help", "--version"):
        words.insert(0, "train")
    try:
        _check_none_is_empty(words)
        if line := settle_home():
            print(line, file=sys.stderr)
        code = int(app(words, prog_name="python -m launcher", standalone_mode=False) or 0)
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        report_problems(error.problems)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if (known := _code_of(error)) is not None:
            return known
        record_for_torchrun(error)
        raise
    if code == INTERRUPTED:  # typer may have caught the KeyboardInterrupt itself, and returns this code then
        print("interrupted", file=sys.stderr)
    return code


def _code_of(error: Exception) -> int | None:
    """Report a usage error or a failure of the surroundings and return its exit code, or None for a bug."""
    if isinstance(error, click_error()):
        report_problems([usage_problem(error)])
        return 2
    if isinstance(error, OSError) and error.filename is None and (lost := lost_output(error)) is not None:
        if isinstance(lost, BrokenPipeError):
            return 1  # as typer and rich exit if they are the ones who write
        report_problems([f"the standard output cannot be written to ({lost.strerror})"])
        return 2
    if "launcher.training.failures" in sys.modules:
        from launcher.training.failures import of_surroundings

        if line := of_surroundings(error):
            report_problems([line])
            return 2
    return None


def _check_none_is_empty(words: Sequence[str]) -> None:
    """Raise UserError for `--run-dir "$UNSET"`: an empty path is the current folder, which nobody means by that."""
    empty = []
    for before, word in zip(["", *words], words, strict=False):
        if not word:
            where = f"{before}: its value" if before.startswith("--") else "an argument"
            empty.append(f"{where} is empty; is a variable of the shell not set?")
        elif re.fullmatch(r"--[a-z-]+=", word):
            empty.append(f"{word[:-1]}: its value is empty; is a variable of the shell not set?")
    if empty:
        raise UserError(*empty)
