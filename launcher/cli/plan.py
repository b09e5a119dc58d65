"""The command `plan`: what a recipe will do, and all that is wrong with it."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import (
    AssetsFolder,
    MicroBatch,
    Overrides,
    PreparedFolder,
    RecipeName,
    load,
    read_micro_batch,
    use_assets,
)


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, metavar="N", help="processes to plan for, over all machines")] = 1,
    micro_batch: MicroBatch = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="T", help="of one allocation, 4:00:00: measure a few steps, and say how many the run needs"
        ),
    ] = None,
    assets: AssetsFolder = None,
    prepared: PreparedFolder = None,
) -> None:
    """Show what training would do, and all that is wrong with it, without training."""
    use_assets(assets)
    loaded = load(recipe, overrides, assets)
    from launcher.planning.plan import show

    show(
        loaded,
        num_processes=processes,
        micro_batch_size=read_micro_batch(micro_batch),
        prepared=prepared,
        allocation=time,
    )
