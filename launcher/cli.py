"""The command line: `python -m launcher RECIPE [OVERRIDES]... [OPTIONS]`, most often behind `accelerate launch`.

A UserError becomes one line for each of its problems, and exit code 2. Anything else is a bug of ours and keeps its
traceback.
"""

from __future__ import annotations

import enum
import io
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from launcher.errors import Problems, UserError, did_you_mean

if TYPE_CHECKING:
    from launcher.recipe.loading import LoadedRecipe

COMMANDS = ("train", "plan", "verify")
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
SECONDS_FOR_MAIN_PROCESS = 10.0
"""How long a process that found a problem leaves the word to the main one, which is likely to find the same."""

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fine-tune a vision model as a recipe says. 'python -m launcher RECIPE ...' is short for 'train RECIPE ...'.",
)


class Resume(str, enum.Enum):
    auto = "auto"
    must = "must"
    never = "never"


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="recipes/resnet50.py, recipes.resnet50, or either with :variable")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME=VALUE", help="optim.lr=3e-4 freeze_plan.0.epochs=5 backbone.weights=none"),
]
MicroBatch = Annotated[
    str | None,
    typer.Option(
        "--micro-batch",
        metavar="M",
        help="samples per device for each forward, or 'auto': what fits; changes memory and speed only",
    ),
]


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="where the run is kept, runs/<recipe> unless given")
    ] = None,
    resume: Annotated[
        Resume, typer.Option(help="continue the run that is there (auto), only if there is one (must), or not (never)")
    ] = Resume.auto,
    micro_batch: MicroBatch = None,
    workers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="data-loading processes for each training process")
    ] = None,
    stop_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="save and stop before 18:30, 2026-05-01T18:30 or +2h30m")
    ] = None,
) -> None:
    """Train, or continue training; the same command again continues.

    Exit codes: 0 finished, 2 a mistake that you can put right, 85 stopped before the end and saved, 130 the same after
    Ctrl-C.
    """
    from launcher.cluster.deadline import read_deadline
    from launcher.cluster.world import check_world, set_threads
    from launcher.training.launch import Launch

    problems = Problems()
    with problems.collected():
        world = check_world()
    with problems.collected():
        loaded = _load(recipe, overrides)
    with problems.collected():
        deadline = read_deadline(stop_at, os.environ)
    problems.raise_if_any()
    set_threads(world)
    from launcher.training.interruption import StoppedError
    from launcher.training.runner import run

    launch = Launch(
        run_dir=run_dir,
        resume=resume.value,
        micro_batch_size=_micro_batch(micro_batch),
        num_workers=workers,
        command=tuple(sys.argv[1:]),
        world=world,
        stop_at=deadline,
    )
    try:
        run(loaded, launch)
    except StoppedError as stopped:
        raise typer.Exit(stopped.exit_code) from stopped


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="processes to plan for, over all machines")] = 1,
    micro_batch: MicroBatch = None,
) -> None:
    """Show what training would do, and all that is wrong with it, without training."""
    loaded = _load(recipe, overrides)
    from launcher.results.plan import show

    show(loaded, num_processes=processes, micro_batch_size=_micro_batch(micro_batch))


@app.command()
def verify(
    recipe: RecipeName,
    overrides: Overrides = None,
    processes: Annotated[str, typer.Option(metavar="1,2", help="numbers of processes to compare")] = "1,2",
    steps: Annotated[int, typer.Option(min=2, metavar="N", help="optimizer steps a phase")] = 3,
) -> None:
    """Check the promises on a recipe of yours: parity, exact resume, frozen is still, every sample once.

    Exit code 0 where all hold, 1 where one is broken.
    """
    problems = Problems()
    with problems.collected():
        loaded = _load(recipe, overrides)
    from launcher.results.verify import numbers_of, show
    from launcher.results.verify import verify as run_verification

    with problems.collected():
        counts = numbers_of(processes)
    problems.raise_if_any()
    from rich.console import Console

    checks = run_verification(loaded, processes=counts, steps=steps, tell=lambda line: print(line, file=sys.stderr))
    if not show(checks, Console(highlight=False)):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        from launcher import __version__

        typer.echo(f"launcher {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        raise UserError("no recipe given; e.g. python -m launcher recipes/digits.py (or --help)")


def _micro_batch(text: str | None) -> int | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--micro-batch {text!r}: must be a whole number from 1, or auto")
    return int(text)


def _load(name: str, overrides: list[str] | None) -> LoadedRecipe:
    import dataclasses

    from launcher.recipe.loading import load_recipe
    from launcher.recipe.overrides import apply_overrides
    from launcher.recipe.serialization import to_json

    if name in COMMANDS:
        raise UserError(f"{name}: a command comes first: python -m launcher {name} RECIPE ...")
    if "=" in name and not Path(name).exists():
        raise UserError(f"{name}: an override, but the recipe comes first: python -m launcher RECIPE {name}")
    try:
        loaded = load_recipe(name)
    except UserError as error:
        close = did_you_mean(name, COMMANDS)
        if name.isidentifier() and "did you mean" in close:
            raise UserError(f"{name}: neither a command nor a recipe{close}") from error
        raise
    changed = dataclasses.replace(loaded, recipe=apply_overrides(loaded.recipe, overrides or []))
    to_json(changed.recipe)  # a part that cannot be written down is told here, not when the run dir is made
    return changed


# Some versions of typer carry click inside them, and some use the installed one. This is the base of all usage errors
# in both: BadParameter -> UsageError -> ClickException.
_ClickError = typer.BadParameter.__mro__[2]


def main(arguments: Sequence[str]) -> int:
    """Run one command, and return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as for stderr: file names need not be text that it can show
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(arguments)
    if words and words[0] not in (*COMMANDS, "--help", "--version"):
        words.insert(0, "train")
    try:
        code = int(app(words, prog_name="python -m launcher", standalone_mode=False) or 0)
    except UserError as error:
        _tell(error.problems)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if isinstance(error, _ClickError):
            _tell([_usage(error)])
            return 2
        _tell_elastic(error)
        raise
    if code == INTERRUPTED:  # Typer may have caught the KeyboardInterrupt itself, and returns this code then.
        print("interrupted", file=sys.stderr)
    return code


def _usage(error: Exception) -> str:
    message = str(error.format_message()).replace("Value error, ", "")  # type: ignore[attr-defined]
    if message.startswith("No such option"):
        message = message.partition(" (Possible")[0].rstrip(".")
        return f"{message}; fields of the recipe are set without dashes: optim.lr=3e-4 (all options: train --help)"
    return message


def _tell(problems: Sequence[str]) -> None:
    """One line for each problem: from the main process, or from another one where the main one has nothing to say.

    Where several processes run, most problems are found by all of them. The launcher (torchrun, accelerate, srun) ends
    the others as soon as the main one has told it and left; one that is still there after a while speaks for itself.
    """
    rank = next((os.environ[name] for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK") if name in os.environ), "0")
    if "SLURM_STEP_ID" in os.environ and "RANK" not in os.environ:
        rank = os.environ.get("SLURM_PROCID", rank)
    if rank not in ("", "0"):
        time.sleep(SECONDS_FOR_MAIN_PROCESS)
    who = "" if rank in ("", "0") else f"[process {rank} on {socket.gethostname()}] "
    # One write for all: torchrun starts Python unbuffered, and the lines of several processes would mix.
    sys.stderr.write("".join(f"error: {who}{' '.join(problem.split())}\n" for problem in problems))
    sys.stderr.flush()


def _tell_elastic(error: Exception) -> None:
    """Let torchrun and accelerate launch show the traceback of the process that failed first."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
