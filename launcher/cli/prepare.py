"""The command `prepare`: a smaller copy of a recipe's images, so that training does not wait for them."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import AssetsFolder, Overrides, RecipeName, check_assets, load, use_assets
from launcher.errors import Problems
from launcher.text import plural

TOLD_EVERY_SECONDS = 5.0


@app.command()
def prepare(
    recipe: RecipeName,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="the folder of the copy, of this recipe alone")],
    overrides: Overrides = None,
    short_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PX",
            help="of training images; unless given, a random crop of average size is not enlarged",
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
    loaded = load(recipe, overrides)
    check_assets(loaded, assets, recipe, overrides)
    import torch

    from launcher.data.prepare import make_copy
    from launcher.data.target_precision import build_splits
    from launcher.training.launch import usable_cpus

    torch.set_num_threads(1)  # one image on each core
    problems = Problems()
    with problems.collected():
        splits = build_splits(loaded.recipe)
    with problems.collected():
        preprocessing = loaded.recipe.backbone.preprocessing()
    problems.raise_if_any()
    total, begin = len(splits.train) + len(splits.val), time.monotonic()
    told = begin

    def progress(done: int) -> None:
        nonlocal told
        if (now := time.monotonic()) - told > TOLD_EVERY_SECONDS:
            told = now
            print(
                f"{done:,} of {plural(total, 'image')}, {(now - begin) / done * (total - done):.0f} s left", flush=True
            )

    copy, was_there = make_copy(
        loaded.recipe,
        splits,
        preprocessing,
        to,
        short_side=short_side,
        workers=workers or usable_cpus(),
        report=lambda line: print(line, flush=True),
        progress=progress,
    )
    command = shlex.join(["python", "-m", "launcher", recipe, *(overrides or []), "--prepared", str(to)])
    print(f"{'there already' if was_there else f'done in {time.monotonic() - begin:.0f} s'}: {copy}")
    print(f"to train on it: {command}")
