"""The hidden command `job`, which slurm/train.sbatch calls under Slurm."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.cli.app import app
from launcher.cli.options import load
from launcher.cluster.arrays import task as words_of
from launcher.cluster.arrays import tasks_of
from launcher.cluster.job import begin as begin_attempt
from launcher.cluster.job import end as end_attempt

job_app = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="For batch scripts: what to do at a job's ends."
)
app.add_typer(job_app, name="job", hidden=True)

TRAIN_WORDS = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}


def train_words(words: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of `train` as it does. Raises typer's usage errors."""
    command: Any = typer.main.get_command(app)
    return dict(command.commands["train"].make_context("train", list(words)).params)


def _run_dir(words: Sequence[str]) -> Path:
    params = train_words(words)
    loaded = load(params["recipe"], list(params["overrides"] or []))
    return Path(params["run_dir"] or loaded.default_run_dir)


@job_app.command(context_settings=TRAIN_WORDS)
def begin(context: typer.Context) -> None:
    """Check the words of a training command, print its run dir, and write down that an attempt begins."""
    run_dir = _run_dir(context.args)
    begin_attempt(run_dir.absolute())
    print(run_dir.absolute())


@job_app.command(context_settings=TRAIN_WORDS)
def task(number: int, context: typer.Context) -> None:
    """Print the words of a sweep's task, each ended by a zero byte: they may hold anything else."""
    words = context.args[1:] if context.args[:1] == ["--"] else context.args
    base = _run_dir(tasks_of(words)[0])
    sys.stdout.write("".join(f"{word}\0" for word in words_of(words, number, base)))


@job_app.command()
def end(
    run_dir: Path,
    exit_code: Annotated[int, typer.Option(help="of srun")] = 0,
    canceled: Annotated[bool, typer.Option(help="the batch script itself was told to end")] = False,
) -> None:
    """Print "again" where the job is to be started once more, "finished" or "over" where not; say why on stderr."""
    verdict = end_attempt(run_dir, exit_code, canceled)
    print(f"{verdict.cause}: {verdict.why}", file=sys.stderr)
    print("again" if verdict.retry else "finished" if verdict.cause == "finished" else "over")
