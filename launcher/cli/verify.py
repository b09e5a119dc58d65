"""The command `verify`: checks of the promises on a user's own recipe."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import (
    AssetsFolder,
    Overrides,
    RecipeName,
    Workers,
    check_assets,
    leave_prepared_copy,
    load,
    use_assets,
)
from launcher.errors import Problems


@app.command()
def verify(
    recipe: RecipeName,
    overrides: Overrides = None,
    processes: Annotated[str, typer.Option(metavar="1,2", help="numbers of processes to compare")] = "1,2",
    steps: Annotated[int, typer.Option(min=2, metavar="N", help="optimizer steps a phase")] = 3,
    workers: Workers = None,
    assets: AssetsFolder = None,
) -> None:
    """Check the promises on a recipe of yours: parity, exact resume, frozen is still, every sample once.

    It trains on a few of the images, which are read from the data themselves: a prepared copy is one of all of them.
    Exit code 0 where all hold, 1 where one is broken.
    """
    leave_prepared_copy()
    use_assets(assets)
    problems = Problems()
    with problems.collected():
        loaded = load(recipe, overrides)
        check_assets(loaded, assets, recipe, overrides)
    from launcher.verify.verify import numbers_of, show
    from launcher.verify.verify import verify as run_verification

    with problems.collected():
        counts = numbers_of(processes)
    problems.raise_if_any()
    from rich.console import Console

    checks = run_verification(
        loaded, processes=counts, steps=steps, workers=workers, report=lambda line: print(line, file=sys.stderr)
    )
    if not show(checks, Console(highlight=False)):
        raise typer.Exit(1)
