"""The command `train`: the start or the continuation of a training run."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import typer

from launcher.cli.app import app
from launcher.cli.options import (
    AssetsFolder,
    MicroBatch,
    Overrides,
    PreparedFolder,
    RecipeName,
    Report,
    Workers,
    check_assets,
    load,
    read_micro_batch,
    use_assets,
)
from launcher.cluster.attempts import record_failure
from launcher.cluster.deadline import read_deadline
from launcher.cluster.parent import read_parent, starter_of
from launcher.cluster.processes import check_world, lone_process_note, set_threads
from launcher.cluster.rendezvous import meet
from launcher.console import to_stderr
from launcher.errors import Problems
from launcher.training.launch import Launch
from launcher.training.stop_request import StoppedError


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="where the run is kept, runs/<recipe> unless given")
    ] = None,
    resume: Annotated[
        Literal["auto", "must", "never"],
        typer.Option(help="continue the run that is there (auto), only if there is one (must), or not (never)"),
    ] = "auto",
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    stop_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="save and stop before 18:30, 2026-05-01T18:30 or +2h30m")
    ] = None,
    assets: AssetsFolder = None,
    prepared: PreparedFolder = None,
    report: Report = True,
    accept_code: Annotated[
        bool, typer.Option("--accept-code", help="continue although the code of your own parts has changed")
    ] = False,
) -> None:
    """Train, or continue training; the same command again continues.

    Exit codes: 0 finished, 2 a mistake that you can put right, 85 stopped before the end and saved, 130 the same after
    Ctrl-C.
    """
    problems = Problems()
    with problems.collected():
        use_assets(assets)
    with problems.collected():
        world = check_world()
    with problems.collected():
        loaded = load(recipe, overrides)
    with problems.collected():
        deadline = read_deadline(stop_at, os.environ)
    problems.raise_if_any()
    set_threads(world)
    if note := lone_process_note(os.environ, world):
        to_stderr(note)
    store = meet(world, to_stderr)
    from launcher.training.loop import run  # once the processes have met: it takes seconds, and more on some machines

    # Imported objects stay to the end. Once frozen, they are skipped by garbage collections, one of which ends each
    # phase (this saves 0.2 s), and the memory pages that data workers share with this process stay shared.
    gc.freeze()
    launch = Launch(
        run_dir=run_dir,
        resume=resume,
        micro_batch_size=read_micro_batch(micro_batch),
        num_workers=workers,
        prepared=prepared,
        evaluate_final=report,
        command=tuple(sys.argv[1:]),
        starter=starter_of(read_parent(), -(-world.num_processes // world.num_local_processes)),
        accepts_changed_code=accept_code,
        world=world,
        stop_at=deadline,
    )
    try:
        check_assets(loaded, assets, recipe, overrides)
        run(
            loaded,
            launch,
            lambda run, outputs: _end_of_run().end(run, outputs, recipe),
            lambda rundir: _end_of_run().left(rundir),
        )
    except StoppedError as stopped:
        # Launchers print a traceback for any code but 0; scripts that read the marker ask for 0.
        code = os.environ.get("LAUNCHER_STOPPED_EXIT_CODE", "")
        raise typer.Exit(int(code) if code.isdigit() else stopped.exit_code) from stopped
    except Exception as error:
        record_failure(run_dir or loaded.default_run_dir, error)
        raise
    finally:
        del store


def _end_of_run() -> ModuleType:
    from launcher.report import end_of_run  # its imports are not needed before

    return end_of_run
