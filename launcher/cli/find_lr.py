"""The command `find-lr`: the learning rate that a recipe can take."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import (
    AssetsFolder,
    MicroBatch,
    Overrides,
    PreparedFolder,
    RecipeName,
    Workers,
    check_assets,
    load,
    read_micro_batch,
    use_assets,
)
from launcher.cluster.processes import check_world, set_threads
from launcher.errors import Problems, UserError
from launcher.training.launch import Launch
from launcher.training.stop_request import StoppedError
from launcher.tuning.lr_finder.trace import Range, check_optim, chosen_phases


@app.command("find-lr")
def find_lr(
    recipe: RecipeName,
    overrides: Overrides = None,
    phase: Annotated[int | None, typer.Option(metavar="N", help="this phase alone, counted from 1; else each")] = None,
    first: Annotated[float, typer.Option("--from", metavar="LR", help="the first value of optim.lr")] = 1e-6,
    last: Annotated[float, typer.Option("--to", metavar="LR", help="the last value of optim.lr")] = 10.0,
    steps: Annotated[int, typer.Option(metavar="N", help="optimizer steps a phase, 10 or more")] = 100,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="draw the curves into this file, too")] = None,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    assets: AssetsFolder = None,
    prepared: PreparedFolder = None,
) -> None:
    """Find a learning rate: train a few steps while it rises until the loss diverges, once for each phase.

    The range test of https://arxiv.org/abs/1506.01186, with the steps that training would take. No run dir is touched;
    features of what is frozen are stored as in training. Exit code 0 where there is a rate to recommend for each phase,
    1 where not.
    """
    rates = Range(first=first, last=last, steps=steps)
    problems = Problems()
    with problems.collected():
        use_assets(assets)
    with problems.collected():
        world = check_world()
        if svg is not None and world.is_main_process:
            _check_svg(svg)
    with problems.collected():
        micro_batch_size = read_micro_batch(micro_batch)
    with problems.collected():
        rates.check()
    with problems.collected():
        loaded = load(recipe, overrides)
        numbers = chosen_phases(loaded.recipe, phase)
        check_optim(loaded.recipe)
    problems.raise_if_any()
    check_assets(loaded, assets, recipe, overrides)
    set_threads(world)
    from launcher.tuning.lr_finder.summary import find_and_show

    launch = Launch(
        micro_batch_size=micro_batch_size,
        num_workers=workers,
        prepared=prepared,
        command=tuple(sys.argv[1:]),
        world=world,
    )
    try:
        all_found = find_and_show(loaded, launch, rates, numbers, svg)
    except StoppedError as stopped:
        print(f"{stopped.reason}: nothing is kept of a test", file=sys.stderr)
        raise typer.Exit(stopped.exit_code) from stopped
    if not all_found:
        raise typer.Exit(1)


def _check_svg(path: Path) -> None:
    folder = path.parent
    if path.suffix.lower() != ".svg":
        raise UserError(f"--svg {path}: curves are drawn as SVG; give a name that ends in .svg")
    if path.is_dir() or not folder.is_dir():
        raise UserError(f"--svg {path}: {'is a folder' if path.is_dir() else f'there is no folder {folder}'}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"--svg {path}: cannot write in {folder}; give another name by --svg")
