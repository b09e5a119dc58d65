"""The command `logs`: the log of a run's newest job."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import RunOrJob


@app.command()
def logs(
    run: RunOrJob, follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job is over")] = False
) -> None:
    """Print the log of a run's newest job, or of a run without Slurm."""
    from launcher.cluster.status import follow as read

    for text in read(run, keep_on=follow):
        print(text, end="", flush=True)
