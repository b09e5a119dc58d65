"""The command `advise`: which backbone to train, how deep, and what that costs."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import AssetsFolder, Overrides, RecipeName, load, use_assets
from launcher.cluster.processes import check_alone, set_threads
from launcher.console import to_stderr
from launcher.errors import Problems
from launcher.training.launch import Launch


@app.command()
def advise(
    recipe: RecipeName,
    overrides: Overrides = None,
    backbones: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="compare: resnet50, timm:NAME, NAME:none (random weights), recipe (its own)"),
    ] = None,
    images: Annotated[int, typer.Option(min=20, metavar="N", help="looked at, of each split, at most")] = 2000,
    costs: Annotated[bool, typer.Option("--costs/--no-costs", help="time a few steps from each boundary")] = True,
    workers: Annotated[int | None, typer.Option(min=0, metavar="N", help="data-loading processes")] = None,
    assets: AssetsFolder = None,
) -> None:
    """Look at the data once and say how good the features are at each depth, what training from there costs, and what
    to do. Nothing is trained: heads are fitted in closed form.
    """
    problems = Problems()
    with problems.collected():
        use_assets(assets)
    with problems.collected():
        world = check_alone("advise")
    problems.raise_if_any()
    loaded = load(recipe, overrides, assets)
    set_threads(world)
    from launcher.tuning.advise.tables import show

    words = [word.strip() for word in (backbones or "").split(",") if word.strip()]
    launch = Launch(num_workers=workers, world=world)
    show(loaded.recipe, words, images, launch, to_stderr, costs)
