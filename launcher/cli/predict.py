"""The command `predict`: the predictions of a finished run's model for images."""

from __future__ import annotations

import enum
import io
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import OwnRecipe, own_types, recipe_words
from launcher.console import lost_output
from launcher.errors import Problems, UserError

if TYPE_CHECKING:
    from launcher.inference.loaded_model import LoadedModel

SOME_UNREADABLE = 3
"""The exit code if some images could not be read; all others were predicted."""
BROKEN_PIPE = 141
"""The exit code if the reader of stdout has left, as shells have it: 128 + SIGPIPE."""


class As(str, enum.Enum):
    """The format of predictions."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="of a run that has ended: runs/pets")],
    paths: Annotated[
        list[str], typer.Argument(metavar="PATHS...", help="images, folders with all below them, 'patterns/**/*.jpg'")
    ],
    top: Annotated[int, typer.Option(min=1, metavar="K", help="so many of the likeliest classes")] = 3,
    as_: Annotated[
        As | None, typer.Option("--as", help="for people, spreadsheets, or programs; as --to ends, or a table")
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="where to; else it is printed")] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="images that the device computes at a time")] = 64,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps; else the best that is here")
    ] = None,
    recipe: OwnRecipe = None,
) -> None:
    """Predict images with the model of a finished run, on one device. Its training data are not needed.

    Exit code 0: all were predicted. 3: some could not be read; they are listed on stderr, and the others were
    predicted. 2: a mistake, and nothing was done. Probabilities are calibrated where the run has been evaluated.
    """
    from launcher.cluster.processes import check_alone, set_threads

    problems = Problems()
    form = As.table
    with problems.collected():
        form = _form(as_, to)
    with problems.collected():
        world = check_alone("predict")
    problems.raise_if_any()
    set_threads(world)

    from rich.console import Console

    from launcher.inference.finished_run import read_finished
    from launcher.inference.inputs import find_images
    from launcher.inference.loaded_model import model_of
    from launcher.inference.predict import device_named, precision_on
    from launcher.inference.predict import predict as run_prediction
    from launcher.inference.prediction_reporter import PredictionReporter
    from launcher.inference.prediction_table import Output, Rows, TableRows, rows_in

    with problems.collected():
        finished = read_finished(run, own_types(recipe))
    with problems.collected():
        found = find_images(paths)
    with problems.collected():
        on = device_named(device)
    problems.raise_if_any()
    model = model_of(finished)
    output = Output(to, sys.stdout.buffer if sys.stdout else io.BytesIO())  # it may be closed
    try:
        rows: Rows
        if form is As.table:
            rows = TableRows(model, top, Console(highlight=False))
        else:
            rows = rows_in(form.value, model, top)(output.stream)
        with PredictionReporter(len(found.images)) as reporter:
            reporter.print(_how(model, run, recipe_words(recipe)))
            for path in found.left_out:
                reporter.name("left out (not an image)", path)
            for part in run_prediction(
                model,
                found.images,
                device=on,
                precision=precision_on(on, finished),
                batch_size=batch,
                num_threads=world.num_cpus,
            ):
                with output.errors_reported():
                    rows.add(part.names, part.results)
                for path, reason in part.broken:
                    reporter.name("cannot be read", path, reason)
                reporter.advance(len(part.names), len(part.broken))
        with output.errors_reported():
            rows.close()
        output.finish()
    except BrokenPipeError as error:  # `... | head`: the reader has seen enough
        lost_output(error)
        raise typer.Exit(BROKEN_PIPE) from None
    except BaseException as error:
        output.abandon(error)
        raise
    reporter.end(to)
    if reporter.broken:
        raise typer.Exit(SOME_UNREADABLE)


def _form(as_: As | None, to: Path | None) -> As:
    if as_ is None and to is not None:
        as_ = next((form for form in As if to.suffix == f".{form.value}" and form is not As.table), None)
        if as_ is None:
            raise UserError(f"--to {to}: which format? say --as csv, --as jsonl or --as parquet")
    if as_ is As.parquet and to is None:
        raise UserError("--as parquet: is not for the screen; give --to FILE")
    if as_ is As.table and to is not None:
        raise UserError(f"--as table: is for the screen; for {to} say --as csv, --as jsonl or --as parquet")
    return as_ or As.table


def _how(model: LoadedModel, run: Path, recipe: str) -> str:
    """Say whether probabilities are calibrated, and from which thresholds labels are given."""
    from launcher.metrics.calibration import few_positives

    named = shlex.quote(str(run))
    if model.kind not in ("classification", "multi-label"):
        return ""
    if model.kind == "multi-label":
        if not model.thresholds_fitted:
            return (
                f"labels from a probability of 0.5 on; to fit thresholds: python -m launcher evaluate {named}{recipe}"
            )
        few = few_positives(dict(zip(model.classes, model.positives, strict=False)))
        rest = f"; some rest on few images: {few}" if few else ""
        return f"labels from the thresholds in {run}/final/calibration.json; probabilities not calibrated{rest}"
    if model.not_calibrated:
        return f"probabilities not calibrated: {model.not_calibrated}"
    if not model.calibrated:
        return f"probabilities not calibrated; to calibrate: python -m launcher evaluate {named}{recipe}"
    return f"probabilities calibrated with temperature {model.temperature:.4g} ({run}/final/calibration.json)"
