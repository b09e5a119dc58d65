"""The command `report`: the results of finished runs, in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import AssetsFolder, OwnRecipe, use_assets
from launcher.cluster.processes import check_alone, set_threads
from launcher.console import to_stderr
from launcher.errors import Problems
from launcher.recipe.loading import types_of_files
from launcher.text import readable_size
from launcher.training.launch import Launch


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="of runs that have ended; several compare")],
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="where to; of one run, report.html in its run dir")
    ] = None,
    explains: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="look for wrong labels and for validation images among the training images; what the network looks at",
        ),
    ] = False,
    workers: Annotated[int | None, typer.Option(min=0, metavar="N", help="data-loading processes")] = None,
    assets: AssetsFolder = None,
    recipe: OwnRecipe = None,
) -> None:
    """Write the report of a finished run, or of several beside each other: one HTML file that needs nothing else.

    A run writes its own when it ends. Here a run is evaluated first where that has not been done since. What can no
    longer be read, pictures for instance, is left out, and the report says so.
    """
    problems = Problems()
    with problems.collected():
        use_assets(assets)
    with problems.collected():
        world = check_alone("report")
    if len(runs) > 1 and to is None:
        problems.found.append(f"{len(runs)} runs: where should their report go? Give --to FILE, --to comparison.html")
    if to is not None and to.is_dir():
        problems.found.append(f"--to {to}: is a folder; give a file, {to / 'report.html'}")
    elif to is not None and not to.absolute().parent.is_dir():
        problems.found.append(f"--to {to}: there is no folder {to.parent}; make it first")
    if doubled := {str(run) for run in runs if sum(run.absolute() == other.absolute() for other in runs) > 1}:
        problems.found.append(f"{', '.join(sorted(doubled))}: given more than once")
    problems.raise_if_any()
    set_threads(world)
    from launcher.report.refresh import report_again

    launch = Launch(num_workers=workers, world=world)
    target = report_again(runs, to, launch, to_stderr, explains, types_of_files(recipe))
    print(f"written to {target} ({readable_size(target.stat().st_size)})")
