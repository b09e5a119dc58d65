"""compare, evaluate: what came out of runs."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.words import AssetsFolder, OwnRecipe, own_types, screen_width, use_assets
from launcher.errors import Problems
from launcher.output import side_by_side
from launcher.text import without_controls


class Format(str, enum.Enum):
    table = "table"
    csv = "csv"
    json = "json"


class SplitName(str, enum.Enum):
    val = "val"
    train = "train"
    test = "test"


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="runs/sweep/*")],
    by: Annotated[
        str | None, typer.Option(metavar="METRIC", help="the best by it comes first; else what the runs go by")
    ] = None,
    as_: Annotated[Format, typer.Option("--as", help="for people, spreadsheets, or programs")] = Format.table,
) -> None:
    """Show what several runs reached, the best first, beside the settings in which their recipes differ."""
    from launcher.cluster.status import status_of
    from launcher.results.compare import compare as compare_runs

    def state_of(run_dir: Path) -> tuple[str, int]:
        status = status_of(str(run_dir))
        return status.state, status.step

    found = compare_runs([run for run in runs if run.is_dir() or not run.exists()], state_of, by)
    if as_ is not Format.table:
        text = found.as_csv() if as_ is Format.csv else found.as_json() + "\n"
        print(without_controls(text) if sys.stdout.isatty() else text, end="")
        return

    print("\n".join(side_by_side(found.table(), screen_width())))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="of a run that has ended: runs/pets")],
    split: Annotated[
        SplitName,
        typer.Option(help="val; train (not augmented); test (what it never saw)"),
    ] = SplitName.val,
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
    from launcher.cluster.world import check_world, set_threads

    problems = Problems()
    with problems.collected():
        use_assets(assets)
    with problems.collected():
        world = check_world()
    if data is not None and split is not SplitName.val:
        problems.found.append("--data and --split: both say which images; give one of them")
    problems.raise_if_any()
    set_threads(world)
    from rich.console import Console

    from launcher.results.evaluate import evaluate as run_evaluation
    from launcher.results.evaluation import write
    from launcher.results.finished import read_finished
    from launcher.results.showing import show
    from launcher.training.launch import Launch

    found = run_evaluation(
        read_finished(run, own_types(recipe)),
        Launch(run_dir=run, num_workers=workers, world=world),
        split_name=split.value,
        data=data,
        flips=flips,
        micro_batch_size=micro_batch,
        tell=lambda line: print(line, flush=True),
    )
    if found is not None:
        write(found)
        show(found, Console(highlight=False))
