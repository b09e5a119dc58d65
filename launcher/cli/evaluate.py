"""The command `evaluate`: the metrics of a finished run's model on a split or on other images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from launcher.cli.app import app
from launcher.cli.options import AssetsFolder, OwnRecipe, use_assets
from launcher.cluster.processes import check_world, set_threads
from launcher.errors import Problems
from launcher.recipe.loading import types_of_files
from launcher.training.launch import Launch


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="of a run that has ended: runs/pets")],
    split: Annotated[
        Literal["val", "train", "test"], typer.Option(help="val; train (not augmented); test (what it never saw)")
    ] = "val",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="other images: a folder for each class, or a CSV or parquet file with the run's columns",
        ),
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="mean over each image and its mirror image")] = False,
    micro_batch: Annotated[
        int | None,
        typer.Option("--micro-batch", min=1, metavar="M", help="images per device for each forward; as in training"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="data-loading processes for each process")
    ] = None,
    assets: AssetsFolder = None,
    recipe: OwnRecipe = None,
) -> None:
    """Evaluate the model of a finished run, each image once, on any number of processes.

    Prints the metrics with 95 % intervals, and writes them to evaluation.json in the run dir, with what there is to
    know of each class; the prediction for each image to evaluation.parquet. (Of training images evaluation-train.*, of
    test images evaluation-test.*, of other ones evaluation-data-NAME.*, with flips evaluation-flips.*.) A temperature
    that calibrates the probabilities, or a threshold for each label, is fitted on the validation images, as far as they
    can carry it, and kept in final/calibration.json.
    """
    problems = Problems()
    with problems.collected():
        use_assets(assets)
    with problems.collected():
        world = check_world()
    if data is not None and split != "val":
        problems.found.append("--data and --split: both say which images; give one of them")
    problems.raise_if_any()
    set_threads(world)
    from launcher.inference.evaluate import evaluate_and_show

    launch = Launch(run_dir=run, num_workers=workers, world=world)
    evaluate_and_show(run, launch, types_of_files(recipe), split, data, flips, micro_batch)
