"""Submission of a recipe as a job of slurm/train.sbatch, checked first and with its code as it is now."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from launcher.cluster.attempts import append
from launcher.cluster.slurm import sbatch
from launcher.cluster.snapshot import Snapshot, take
from launcher.errors import Problems, UserError
from launcher.recipe.loading import LoadedRecipe
from launcher.recipe.recipe import Recipe

CODE = ".code"
"""Folder in the run dir with the code of its jobs, a folder for each submission."""
_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Resources and options asked of Slurm."""

    nodes: int = 1
    gpus_per_node: int = 0
    processes_per_node: int = 1
    """Number of processes on each node without GPUs."""
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    array: str | None = None
    chain: int = 1
    container: str | None = None
    others: tuple[str, ...] = ()
    """Options passed to sbatch as they are, such as "--mem=64G"."""

    @property
    def num_processes(self) -> int:
        """Number of processes on all nodes."""
        return self.nodes * (self.gpus_per_node or self.processes_per_node)

    def check(self) -> None:
        """Check the request before Slurm sees it.

        Raises:
            UserError: The request is wrong; there is one line for each reason.
        """
        problems = Problems()
        if self.time is not None and not _TIME.fullmatch(self.time):
            problems.found.append(f"--time {self.time!r}: write minutes, hours:minutes:seconds, or days-hours:minutes")
        if self.chain > 1 and self.array:
            problems.found.append(
                f"--chain {self.chain} --array {self.array}: a chain is of single jobs; leave one out"
            )
        for word in self.others:
            if not re.fullmatch(r"--?[A-Za-z][\w-]*(=.*)?", word, re.DOTALL):
                problems.found.append(
                    f"{word!r}: neither name=value nor an option; options of sbatch are written with =: --mem=64G"
                )
            elif own := _own_option(word):
                problems.found.append(f"{word}: {own}")
        texts = {f"--{name}": getattr(self, name) for name in ("time", "partition", "account", "array", "container")}
        for name, value in {**texts, "option": "".join(self.others)}.items():
            if value is not None and not value.isprintable():
                problems.found.append(f"{name} {value!r}: has a line break or another control character; leave it out")
        problems.raise_if_any()

    def options(self, name: str) -> list[str]:
        """Return the options of sbatch for a job called `name`."""
        options = [f"--job-name={name}", f"--nodes={self.nodes}"]
        if self.gpus_per_node:
            options.append(f"--gpus-per-node={self.gpus_per_node}")
        elif self.processes_per_node > 1:
            options.append(f"--ntasks-per-node={self.processes_per_node}")
        values = {name: getattr(self, name) for name in ("time", "partition", "account", "array")}
        options += [f"--{name}={value}" for name, value in values.items() if value is not None]
        return [*options, *self.others]


_OWN = {
    ("-N", "--nodes"): "--nodes {}",
    ("-p", "--partition"): "--partition {}",
    ("-A", "--account"): "--account {}",
    ("-t", "--time"): "--time {}",
    ("-a", "--array"): "--array {}",
    ("-G", "--gpus", "--gres", "--gpus-per-task", "--gpus-per-node"): "--gpus-per-node {} (of each node)",
    ("-n", "--ntasks", "--ntasks-per-node", "--tasks-per-node", "--ntasks-per-gpu"): (
        "--gpus-per-node G, a process for each GPU, or on nodes without GPUs --processes-per-node {}"
    ),
}
"""Options of sbatch, and the options of `submit` that mean the same."""


def _own_option(word: str) -> str | None:
    """Return why an option of sbatch is not passed on, or None.

    Options that are checked, and those that share out the batch, must be known here.
    """
    match = re.fullmatch(r"(--[A-Za-z][\w-]*|-[A-Za-z])(=?)(.*)", word, re.DOTALL)
    if match is None:
        return None
    option, equals, value = match.groups()
    value = value.lstrip("=")
    if option == "--gres" and "gpu" not in value:
        return None
    for names, own in _OWN.items():
        if option in names:
            number = value.rpartition(":")[2] if option in ("--gres", "--gpus", "-G", "--gpus-per-task") else value
            return f"sbatch would take it unseen by the checks; write {own.format(number or 'N')}"
    if not option.startswith("--") and equals:
        return f"sbatch reads {equals + value!r} as the value; write {option}{value}, or the long form of the option"
    return None


@dataclasses.dataclass(frozen=True)
class Submission:
    """Job that was submitted, or would be."""

    jobs: tuple[str, ...]
    command: tuple[str, ...]
    """Command that submits the first job, beginning with sbatch."""
    environ: Mapping[str, str]
    """Variables set for the job besides this environment."""
    script: Path
    snapshot: Snapshot | None
    run_dir: Path


def check_as_plan_does(
    recipe: Recipe, request: Request, micro_batch_size: int | Literal["auto"] | None, run_dir: Path | None
) -> None:
    """Check all that `plan` checks for the requested processes, and whether the run dir is of the same recipe.

    Raises:
        UserError: Something is wrong; there is one line for each reason.
    """
    from launcher.training.preflight import examine  # imports torch, which a mistake in a request need not wait for
    from launcher.training.run_dir import RunDir

    problems = Problems()
    if run_dir is not None:
        with problems.collected():
            RunDir(run_dir).check(recipe, "auto")
    findings = examine(
        recipe,
        num_processes=request.num_processes,
        micro_batch_size=micro_batch_size,
        on_cpu=request.gpus_per_node == 0,
    )
    with problems.collected():
        findings.prepared()
    problems.raise_if_any()


def script_named(name: str) -> Path:
    """Return the path of the user's own copy in ./slurm, or of the script that comes with this package.

    Raises:
        UserError: There is none.
    """
    beside = Path(__file__).resolve().parents[2]
    for folder in (Path("slurm"), beside / "slurm", beside / "launcher/cluster/scripts"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"slurm/{name}: not found here, nor beside the package; copy the folder slurm/ from the repository")


def submit(
    loaded: LoadedRecipe,
    spec: str,
    words: Sequence[str],
    request: Request,
    *,
    run_dir: Path,
    script: str = "train.sbatch",
    dry_run: bool = False,
) -> Submission:
    """Copy the code, and submit the job, or a chain of jobs of which each continues the last.

    `spec` names the recipe as the user did, and `words` are all other words of the training command. With `dry_run`
    nothing is copied or submitted.

    Raises:
        UserError: Slurm refuses the job.
    """
    if not str(run_dir).isprintable():
        raise UserError(
            f"--run-dir {str(run_dir)!r}: has a line break or another control character; choose another name"
        )
    if dry_run:
        snapshot, recipe = None, spec
    else:
        number = len(list((run_dir / CODE).glob("*"))) + 1
        snapshot = take(loaded.path, loaded.module_name, run_dir.absolute() / CODE / str(number), [spec, *words])
        colon = f":{loaded.variable}" if loaded.variable != "recipe" else ""
        recipe = f"{snapshot.recipe}{colon}"
    path = script_named(script)
    environ = _environ(request, snapshot)
    if script == "sweep.sbatch":
        environ["LAUNCHER_SCRIPTS"] = str(path.parent.resolve())
    script_and_words = [str(path), recipe, *words, "--run-dir", str(run_dir)]
    jobs: list[str] = []
    command: list[str] = []
    for _ in range(request.chain):
        options = [*request.options(run_dir.name), f"--comment=run_dir={run_dir.absolute()}"]
        if request.chain > 1:
            options.append("--no-requeue")  # the next job continues; a requeued one would do so beside it
        if jobs:
            options.append(f"--dependency=afterany:{jobs[-1]}")
        command = command or ["sbatch", "--parsable", *options, *script_and_words]
        if dry_run:
            break
        try:
            jobs.append(sbatch(options, script_and_words, {**os.environ, **environ}))
        except UserError:
            if snapshot is not None and not jobs:
                _take_back(snapshot, run_dir)
            raise
        row = {"event": "submitted", "job": jobs[-1], "name": jobs[-1], "command": shlex.join([spec, *words])}
        append(run_dir, row)
    return Submission(tuple(jobs), tuple(command), environ, path, snapshot, run_dir)


def _take_back(snapshot: Snapshot, run_dir: Path) -> None:
    """Remove the code that was copied for a job that Slurm refused."""
    shutil.rmtree(snapshot.folder, ignore_errors=True)
    for folder in (run_dir / CODE, run_dir):
        with contextlib.suppress(OSError):  # not empty, or not there
            folder.rmdir()


def _environ(request: Request, snapshot: Snapshot | None) -> dict[str, str]:
    environ: dict[str, str] = {}
    if snapshot is not None:
        environ["LAUNCHER_CODE"] = str(snapshot.folder)
    if request.container:
        environ["LAUNCHER_CONTAINER"] = request.container
    if request.chain > 1:
        environ["LAUNCHER_CHAIN"] = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
    return environ


def check_python() -> None:
    """Check that Python can run the copied code alone.

    Raises:
        UserError: This is Python 3.10, whose -m always looks into the current folder first: the code there would run in
            place of the copy.
    """
    if sys.version_info < (3, 11):
        raise UserError(
            "submit: needs Python 3.11, to run the copied code alone; sbatch slurm/train.sbatch works with 3.10"
        )
