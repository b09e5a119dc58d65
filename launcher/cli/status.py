"""The command `status`: the state of a run on a cluster."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from launcher.cli.app import app
from launcher.cli.options import RunOrJob
from launcher.console import show_table
from launcher.text import plural


@app.command()
def status(
    run: RunOrJob,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """How a run stands: state, step, restarts, and why each of its lives ended."""
    from launcher.cluster.status import status_of

    told = status_of(run)
    if as_json:
        row = {"run_dir": str(told.run_dir), "state": told.state, "why": told.why, "step": told.step}
        row |= {"steps": told.steps, "may_end_early": told.may_end_early}
        row |= {"restarts": told.restarts, "job": told.job.job if told.job else None, "lives": told.lives}
        print(json.dumps(row, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{told.run_dir}: {told.state}{f' ({told.why})' if told.why else ''}", markup=False)
    console.print(f"{told.progress} saved, {plural(told.restarts, 'restart')}", markup=False)
    if told.job is not None:
        console.print(f"job {told.job.job}: {told.job.state} {told.job.nodes}; log {told.job.log}", markup=False)
    if told.lives:
        rows = [["time", "job", "start", "what", "step", "why"]]
        for row in told.lives:
            what = row.get("cause") or row.get("kind") or row.get("event")
            cells = [row.get("time"), row.get("name") or row.get("job"), row.get("life"), what, row.get("step")]
            cells.append(row.get("why") or row.get("nodes") or "")
            rows.append(["" if cell is None else str(cell) for cell in cells])
        show_table(rows, console, left=range(6))
