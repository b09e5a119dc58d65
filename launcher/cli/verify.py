"""The command `verify`: checks of the promises on a user's own recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import AssetsFolder, Overrides, RecipeName, Workers, leave_prepared_copy, load, use_assets
from launcher.console import to_stderr
from launcher.errors import Problems, UserError


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
        loaded = load(recipe, overrides, assets)
    with problems.collected():
        counts = _numbers_of(processes)
    problems.raise_if_any()
    from launcher.verify.verify import verify as run_verification

    if not run_verification(loaded, processes=counts, steps=steps, workers=workers, report=to_stderr):
        raise typer.Exit(1)


def _numbers_of(text: str) -> list[int]:
    """Parse process counts such as "1,2". Raises UserError for other text."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise UserError(f"--processes {text!r}: write numbers of processes with commas: 1,2")
    return [int(word) for word in words]
