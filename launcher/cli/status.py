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
def status(run: RunOrJob, as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False) -> None:
    """How a run stands: state, step, restarts, and why each attempt at it ended."""
    from launcher.cluster.status import status_of

    summary = status_of(run)
    if as_json:
        row = {
            "run_dir": str(summary.run_dir),
            "state": summary.state,
            "why": summary.why,
            "step": summary.step,
            "steps": summary.steps,
            "may_end_early": summary.may_end_early,
            "restarts": summary.restarts,
            "job": summary.job.job if summary.job else None,
            "lives": summary.attempts,
        }
        print(json.dumps(row, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{summary.run_dir}: {summary.state}{f' ({summary.why})' if summary.why else ''}", markup=False)
    console.print(f"{summary.progress} saved, {plural(summary.restarts, 'restart')}", markup=False)
    if (job := summary.job) is not None:
        console.print(f"job {job.job}: {job.state} {job.nodes}; log {job.log}", markup=False)
    if summary.attempts:
        rows = [["time", "job", "start", "what", "step", "why"]]
        for row in summary.attempts:
            event = row.get("cause") or row.get("kind") or row.get("event")
            cells = [row.get("time"), row.get("name") or row.get("job"), row.get("life"), event, row.get("step")]
            cells.append(row.get("why") or row.get("nodes") or "")
            rows.append(["" if cell is None else str(cell) for cell in cells])
        show_table(rows, console, left=range(6))
