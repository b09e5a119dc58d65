"""The command `prepare`: a smaller copy of a recipe's images, so that training does not wait for them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import AssetsFolder, Overrides, RecipeName, load, use_assets
from launcher.training.launch import usable_cpus


@app.command()
def prepare(
    recipe: RecipeName,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="the folder of the copy, of this recipe alone")],
    overrides: Overrides = None,
    short_side: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="PX", help="of training images; unless given, a random crop of average size is not enlarged"
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, metavar="N", help="threads, one for each core")] = None,
    assets: AssetsFolder = None,
) -> None:
    """Copy a recipe's images, their shorter side resized once, as plain pixels: training then need not decode them.

    The copy is used with --prepared DIR, or LAUNCHER_PREPARED=DIR in the environment. Validation sees the very same
    pixels; training images are resized once more than without it and cropped elsewhere, so what is learned differs
    slightly. The copy takes 3 bytes a pixel. A run refuses a copy whose images have changed since, or which is too
    small for its recipe.
    """
    use_assets(assets)
    loaded = load(recipe, overrides, assets)
    from launcher.data.prepare import prepare as copy_images

    print(
        copy_images(
            loaded.recipe,
            to,
            short_side=short_side,
            workers=workers or usable_cpus(),
            report=lambda line: print(line, flush=True),
        )
    )
    command = shlex.join(["python", "-m", "launcher", recipe, *(overrides or []), "--prepared", str(to)])
    print(f"to train on it: {command}")
