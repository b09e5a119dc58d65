"""The command `cancel`: the end of a run's jobs."""

from __future__ import annotations

from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import RunOrJob


@app.command()
def cancel(run: RunOrJob, now: Annotated[bool, typer.Option("--now", help="do not let it save first")] = False) -> None:
    """End a run's jobs: ask for a clean stop first, so that nothing is lost."""
    from launcher.cluster.status import stop_and_cancel

    print(stop_and_cancel(run, at_once=now))
