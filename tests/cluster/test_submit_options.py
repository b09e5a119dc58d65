"""Options of sbatch that decide the number of processes are not passed on unseen."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from launcher.cluster.processes import lone_process_note
from launcher.cluster.submit import Request, submit
from launcher.errors import UserError
from launcher.recipe.loading import LoadedRecipe
from launcher.training.launch import World


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("--gres=gpu:4", "--gpus-per-node 4 (of each node)"),
        ("--gres=gpu:a100:4", "--gpus-per-node 4 (of each node)"),
        ("--gpus=4", "--gpus-per-node 4 (of each node)"),
        ("-G4", "--gpus-per-node 4 (of each node)"),
        ("--ntasks-per-node=4", "on nodes without GPUs --processes-per-node 4"),
        ("-n4", "on nodes without GPUs --processes-per-node 4"),
        ("-N4", "write --nodes 4"),
        ("-p=gpu", "write --partition gpu"),
        ("-C=a100", "sbatch reads '=a100' as the value; write -Ca100"),
    ],
)
def test_they_are_refused_with_what_to_write(word: str, instead: str) -> None:
    with pytest.raises(UserError) as error:
        Request(others=(word,)).check()
    assert instead in str(error.value)


def test_others_are_passed_on() -> None:
    others = ("--mem=64G", "--gres=lustre:1", "--exclusive", "-Ca100", "--cpus-per-gpu=8")
    request = Request(others=others)
    request.check()
    assert tuple(request.options("pets")[-len(others) :]) == others


@pytest.mark.parametrize("field", ["time", "partition", "account", "array", "container"])
def test_control_characters_are_refused(field: str) -> None:
    with pytest.raises(UserError, match=r"\\n.*: has a line break or another control character"):
        Request(**{field: "gpu\n#SBATCH -N9"}).check()  # type: ignore[arg-type]


def test_a_run_dir_with_a_line_break_is_refused() -> None:
    """Its name stands in a comment of the job's script and in lines of its log."""
    loaded = LoadedRecipe(tiny.recipe, "tiny", Path(tiny.__file__))
    with pytest.raises(UserError, match=r"--run-dir 'runs/a\\nb': has a line break or another control character"):
        submit(loaded, tiny.__file__, (), Request(), run_dir=Path("runs/a\nb"), dry_run=True)


def test_one_process_of_a_job_with_several_tasks_is_reported() -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
    assert "the job has 4 tasks (SLURM_NTASKS)" in (lone_process_note(job, World()) or "")
    for environ, world in (
        (job | {"SLURM_STEP_ID": "0"}, World()),
        (job, World(num_processes=4)),
        (job, World(leave_with_parent=True)),
        (job | {"SLURM_NTASKS": "1"}, World()),
    ):
        assert lone_process_note(environ, world) is None
