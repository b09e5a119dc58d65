"""The command `rehearse`: a cluster job, played on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import AssetsFolder, Overrides, RecipeName, Workers, leave_prepared_copy, load, use_assets
from launcher.console import to_stderr


@app.command()
def rehearse(
    recipe: RecipeName,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="processes on this machine")] = 1,
    steps: Annotated[int, typer.Option(min=3, metavar="N", help="optimizer steps a phase")] = 6,
    workers: Workers = None,
    assets: AssetsFolder = None,
) -> None:
    """Play a job's life on this machine, without Slurm: start, warning, save, restart, kill -9, restart, finish.

    Trains a few steps a phase on a few of the images, which are read from the data themselves: a prepared copy is one
    of all of them. Exit code 0 where the result is that of the unbroken run, 1 where not.
    """
    leave_prepared_copy()
    use_assets(assets)
    loaded = load(recipe, overrides, assets)
    from launcher.verify.rehearse import rehearse as play

    if not play(loaded, processes=processes, steps=steps, workers=workers, report=to_stderr):
        raise typer.Exit(1)
