"""The command `logs`: the log of a run's newest job."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import (
    RunOrJob,
)

if TYPE_CHECKING:
    pass


@app.command()
def logs(
    run: RunOrJob,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on until the job is over")] = False,
) -> None:
    """Print the log of a run's newest job, or of a run without Slurm."""
    from launcher.cluster.status import follow as read

    for text in read(run, keep_on=follow):
        sys.stdout.write(text)
        sys.stdout.flush()
