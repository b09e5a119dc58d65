"""compare: what came out of runs."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.app import app


class Format(str, enum.Enum):
    table = "table"
    csv = "csv"
    json = "json"


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
        print(found.as_csv() if as_ is Format.csv else found.as_json(), end="" if as_ is Format.csv else "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in found.columns:
        table.add_column(column, justify="left" if column in ("run", "state") else "right")
    for row in found.rows():
        table.add_row(*(_shown(cell) for cell in row))
    Console(highlight=False).print(table)


def _shown(cell: object) -> str:
    if cell is None:
        return "-"
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    return text.replace("[", "\\[")
