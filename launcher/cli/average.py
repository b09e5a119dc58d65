"""The command `average`: means of trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import AssetsFolder, OwnRecipe, use_assets
from launcher.cluster.processes import check_alone, set_threads
from launcher.console import to_stderr
from launcher.errors import Problems
from launcher.recipe.loading import types_of_files
from launcher.training.launch import Launch


@app.command()
def average(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="one: its checkpoints; several: what each ended with")
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="a run dir for the mean, if one is better")],
    points: Annotated[
        int, typer.Option(min=2, max=100, metavar="N", help="parts of the way from the head alone to the fine-tuned")
    ] = 10,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="the run dir may be there already")] = False,
    workers: Annotated[int | None, typer.Option(min=0, metavar="N", help="data-loading processes")] = None,
    assets: AssetsFolder = None,
    recipe: OwnRecipe = None,
) -> None:
    """Try means of weights on the validation images: a greedy soup, and the way from head alone to fine-tuned.

    The best is written as a run dir that evaluate, predict, export and report take; nothing is where none is better
    than the first run's own weights. It was chosen on the validation images, so what these say of it is a little too
    good: `evaluate --data` measures it on others.
    """
    problems = Problems()
    with problems.collected():
        use_assets(assets)
    with problems.collected():
        world = check_alone("average")
    problems.raise_if_any()
    set_threads(world)
    from launcher.inference.average import average as average_runs

    launch = Launch(num_workers=workers, world=world)
    averaged = average_runs(runs, to, points, launch, report=to_stderr, overwrite=overwrite, own=types_of_files(recipe))
    if averaged.best is None:
        print(f"none is better than {runs[0]}: {averaged.shown(averaged.before)}; nothing was written")
    else:
        after, before = averaged.shown(averaged.best.metrics), averaged.shown(averaged.before)
        print(f"{averaged.best.name}: {after} instead of {before}; written to {to}")
