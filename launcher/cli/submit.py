"""The command `submit`: a training job for Slurm."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.app import app
from launcher.cli.options import (
    AssetsFolder,
    MicroBatch,
    PreparedFolder,
    RecipeName,
    Report,
    check_assets,
    load,
    read_micro_batch,
    training_words,
    use_assets,
)
from launcher.cluster.arrays import array_of, tasks_of
from launcher.cluster.submit import Request, Submission, check_as_plan_does, check_python
from launcher.cluster.submit import submit as submit_job
from launcher.console import to_stderr
from launcher.errors import Problems, UserError

OTHERS = {"ignore_unknown_options": True}


@app.command(context_settings=OTHERS)
def submit(
    recipe: RecipeName,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME=VALUE --OPTION=VALUE", help="overrides, and any option of sbatch: --mem=64G"),
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, metavar="N")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, metavar="G", help="0: train on CPUs")] = 0,
    processes_per_node: Annotated[int, typer.Option(min=1, metavar="P", help="on nodes without GPUs")] = 1,
    time_: Annotated[str | None, typer.Option("--time", metavar="T", help="of one allocation: 4:00:00")] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    array: Annotated[
        str | None, typer.Option(metavar="0-5%2", help="a sweep: a task for each line of @FILE or value of a grid")
    ] = None,
    chain: Annotated[int, typer.Option(min=1, metavar="N", help="N jobs, each continuing the one before")] = 1,
    container: Annotated[str | None, typer.Option(metavar="IMAGE", help="an image of Apptainer, x.sif")] = None,
    run_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="runs/<recipe> unless given")] = None,
    micro_batch: MicroBatch = None,
    workers: Annotated[int | None, typer.Option(min=0, metavar="N", help="data-loading processes each")] = None,
    assets: AssetsFolder = None,
    prepared: PreparedFolder = None,
    report: Report = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print script and command, submit nothing")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="until the job is over, with its log")] = False,
) -> None:
    """Check all that `plan` checks, then train on a cluster: sbatch slurm/train.sbatch, with the code as it is now.

    Exit code 0 where the job was taken (with --wait: where the run is finished), 2 for a mistake.
    """
    use_assets(assets)
    words = list(overrides or [])
    request = Request(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        processes_per_node=processes_per_node,
        time=time_,
        partition=partition,
        account=account,
        array=array,
        chain=chain,
        container=container,
        others=tuple(word for word in words if word.startswith("-") or not ("=" in word or word.startswith("@"))),
    )
    named = [word for word in words if word not in request.others]
    problems = Problems()
    with problems.collected():
        request.check()
    with problems.collected():
        check_python()
    with problems.collected():
        every = [load(recipe, task) for task in (tasks_of(named) if array else [named])]
        if array:
            request = dataclasses.replace(request, array=array_of(array, len(every)))
        with problems.collected():
            check_assets(every[0], assets, recipe, named)
    problems.raise_if_any()
    if gpus_per_node == 0 and not any(word.startswith(("--gres", "--gpus", "-G")) for word in request.others):
        to_stderr("no GPUs asked for: trains on CPUs (--gpus-per-node G asks for them)")
    loaded = every[0]
    place = run_dir or loaded.default_run_dir
    check_as_plan_does(loaded.recipe, request, read_micro_batch(micro_batch), None if array else place)
    options = [*training_words(micro_batch, workers, assets, prepared), *([] if report else ["--no-report"])]
    script = "sweep.sbatch" if array else "train.sbatch"
    submission = submit_job(loaded, recipe, [*named, *options], request, run_dir=place, script=script, dry_run=dry_run)
    _print_submission(submission, dry_run)
    if wait and not dry_run:
        _wait(submission.jobs[-1], place)


def _print_submission(submission: Submission, dry_run: bool) -> None:
    if dry_run:
        for name, value in submission.environ.items():
            print(f"export {name}={shlex.quote(value)}")
        print(shlex.join(submission.command))
        print(f"\n# {submission.script}")
        print(submission.script.read_text(encoding="utf-8"), end="")
        return
    assert submission.snapshot is not None
    run_dir = shlex.quote(str(submission.run_dir))
    code = submission.snapshot
    state = f"commit {code.commit[:12]}{' with changes' if code.changed else ''}" if code.commit else "not under git"
    print(f"job {' -> '.join(submission.jobs)}; run dir {submission.run_dir}; code copied to {code.folder} ({state})")
    print(f"  python -m launcher status {run_dir}")
    print(f"  python -m launcher logs {run_dir} --follow")
    print(f"  python -m launcher cancel {run_dir}")


def _wait(job: str, run_dir: Path) -> None:
    from launcher.cluster.status import follow, status_of

    for text in follow(job, keep_on=True):
        print(text, end="", flush=True)
    status = status_of(str(run_dir))
    if status.state != "finished":
        raise UserError(f"{run_dir}: {status.state}{f': {status.why}' if status.why else ''}")
