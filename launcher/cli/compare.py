"""The command `compare`: the results of several runs, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from launcher.cli.app import app
from launcher.cli.options import screen_width
from launcher.console import side_by_side
from launcher.text import without_controls

Format = Literal["table", "csv", "json"]
"""The format of a table that is printed."""


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="runs/sweep/*")],
    by: Annotated[
        str | None, typer.Option(metavar="METRIC", help="the best by it comes first; else what the runs go by")
    ] = None,
    as_: Annotated[Format, typer.Option("--as", help="for people, spreadsheets, or programs")] = "table",
) -> None:
    """Show what several runs reached, the best first, beside the settings in which their recipes differ."""
    from launcher.report.compare import compare as compare_runs

    comparison = compare_runs([run for run in runs if run.is_dir() or not run.exists()], by)
    if as_ != "table":
        text = comparison.as_csv() if as_ == "csv" else comparison.as_json() + "\n"
        print(without_controls(text) if sys.stdout.isatty() else text, end="")
        return
    print("\n".join(side_by_side(comparison.table(), screen_width())))
