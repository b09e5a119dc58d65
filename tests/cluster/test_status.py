"""How far a run has come, and how far it is to go."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from commands import RunCli
from launcher.cluster.status import status_of
from launcher.training.attempt import planned_steps
from launcher.training.command import Command
from launcher.training.run_dir import RunDir, Start
from launcher.training.run_lock import RunLock
from runs import train


def begun(run_dir: Path, **changes: Any) -> Path:
    recipe = dataclasses.replace(tiny.recipe, **changes)
    splits = recipe.data.build("class", 0)
    start = Start(recipe=recipe, recipe_source="", command=Command(()), splits=splits, lr_scales_of_phases=())
    run_dir.mkdir(parents=True)
    RunDir(run_dir).begin(start, print)
    return run_dir


def test_the_steps_of_the_whole_run(tmp_path: Path) -> None:
    """90 images in batches of 32 are three steps; four epochs in two phases."""
    assert planned_steps(tmp_path) is None
    assert planned_steps(begun(tmp_path / "a")) == (12, False)
    assert planned_steps(begun(tmp_path / "b", batch_size=90)) == (4, False)
    patient = dataclasses.replace(tiny.recipe.freeze_plan[1], patience=1, epochs=30)
    assert planned_steps(begun(tmp_path / "c", freeze_plan=(tiny.recipe.freeze_plan[0], patient))) == (96, True)


def test_status_says_how_far_it_is_to_go(run_cli: RunCli, tmp_path: Path) -> None:
    patient = dataclasses.replace(tiny.recipe.freeze_plan[0], patience=30, epochs=40)
    run_dir = begun(tmp_path / "run", freeze_plan=(patient,))
    assert status_of(str(run_dir)).progress == "step 0 of at most 120"
    (tmp_path / "nothing").mkdir()
    assert status_of(str(tmp_path / "nothing")).progress == "step 0"
    reported = json.loads(run_cli("status", str(run_dir), "--json").out)
    assert (reported["step"], reported["steps"], reported["may_end_early"]) == (0, 120, True)
    assert run_cli("status", str(run_dir)).out.splitlines()[1] == "step 0 of at most 120 saved, 0 restarts"


@pytest.mark.slow
def test_a_run_that_ends_has_taken_all_of_them(tmp_path: Path) -> None:
    train(tiny.recipe, tmp_path / "run")
    assert status_of(str(tmp_path / "run")).progress == "step 12 of 12"


def test_cancel_says_what_there_was_to_cancel(run_cli: RunCli, tmp_path: Path) -> None:
    run_dir = begun(tmp_path / "run")
    done = run_cli("cancel", str(run_dir))
    nothing = "nothing to cancel: no job of it waits or runs, and no process here trains in it"
    assert (done.code, done.out, done.err) == (0, f"{run_dir}: {nothing}\n", "")
    assert not (run_dir / "STOP").exists(), "the next start would stop at once"
    owner = RunLock(run_dir)
    owner.acquire(print)
    assert run_cli("cancel", str(run_dir)).out == f"{run_dir}: asked to save and stop\n"
    assert (run_dir / "STOP").exists()
    owner.release()
