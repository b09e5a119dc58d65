"""The command `predict`: the predictions of a finished run's model for images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from launcher.cli.app import app
from launcher.cli.options import OwnRecipe
from launcher.cluster.processes import check_alone, set_threads
from launcher.console import lost_output
from launcher.errors import Problems, UserError

SOME_UNREADABLE = 3
"""The exit code if some images could not be read; all others were predicted."""
BROKEN_PIPE = 141
"""The exit code if the reader of stdout has left, as shells have it: 128 + SIGPIPE."""


Format = Literal["table", "csv", "jsonl", "parquet"]
"""The format of predictions."""


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="of a run that has ended: runs/pets")],
    paths: Annotated[
        list[str], typer.Argument(metavar="PATHS...", help="images, folders with all below them, 'patterns/**/*.jpg'")
    ],
    top: Annotated[int, typer.Option(min=1, metavar="K", help="so many of the likeliest classes")] = 3,
    as_: Annotated[
        Format | None, typer.Option("--as", help="for people, spreadsheets, or programs; as --to ends, or a table")
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
    problems = Problems()
    form: Format = "table"
    with problems.collected():
        form = _form(as_, to)
    with problems.collected():
        world = check_alone("predict")
    problems.raise_if_any()
    set_threads(world)
    from launcher.inference.predict import predict_files

    try:
        num_broken = predict_files(run, paths, recipe, form=form, top=top, to=to, batch_size=batch, device=device)
    except BrokenPipeError as error:  # `... | head`: the reader has seen enough
        lost_output(error)
        raise typer.Exit(BROKEN_PIPE) from None
    if num_broken:
        raise typer.Exit(SOME_UNREADABLE)


def _form(as_: Format | None, to: Path | None) -> Format:
    if as_ is None and to is not None:
        files: tuple[Format, ...] = ("csv", "jsonl", "parquet")
        as_ = next((form for form in files if to.suffix == f".{form}"), None)
        if as_ is None:
            raise UserError(f"--to {to}: which format? say --as csv, --as jsonl or --as parquet")
    if as_ == "parquet" and to is None:
        raise UserError("--as parquet: is not for the screen; give --to FILE")
    if as_ == "table" and to is not None:
        raise UserError(f"--as table: is for the screen; for {to} say --as csv, --as jsonl or --as parquet")
    return as_ or "table"
