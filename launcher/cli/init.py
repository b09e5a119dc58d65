"""The command `init`: a recipe for data that nobody has described yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from launcher.cli.app import app
from launcher.console import to_stderr


@app.command()
def init(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="a folder of images, a .csv, .tsv or .parquet file, or owner/name of the Hugging Face hub",
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="FILE.py", help="the recipe to write")] = Path("recipe.py"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="write over a recipe that is there already")] = False,
    hardware: Annotated[
        Literal["here", "cpu", "gpu"],
        typer.Option("--for", help="what to choose for: this machine, or one with or without a GPU"),
    ] = "here",
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="column of a table with the targets; again for each further one"),
    ] = None,
    task: Annotated[
        Literal["classification", "multilabel", "regression"] | None,
        typer.Option(help="what the targets are, where that is not to be found out"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="configuration of a data set of the hub that has several")
    ] = None,
) -> None:
    """Look at data and write a recipe for it: ready to run, with the reason for each line, and yours to change.

    Looks at names, columns and a sample of the images; nothing is trained, no weights are downloaded.
    """
    from launcher.init.draft import make_recipe

    make_recipe(
        source,
        to,
        overwrite=overwrite,
        name=name,
        label=label or (),
        task=task,
        hardware=hardware,
        report=to_stderr,
    )
