"""Two real processes on CPUs (gloo): the same weights as one process, on both ways of starting them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from processes import STARTS, alone, furthest, start, steps, weights


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("one") / "run"
    alone(dataclasses.replace(tiny.recipe, final_weights="last"), run_dir)
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("way", STARTS)
def test_two_processes_end_with_the_weights_of_one(one_process: Path, tmp_path: Path, way: str) -> None:
    # That both hold the same weights is proven at every checkpoint: a run in which they differ stops.
    done = start(way, "final_weights=last", "--run-dir", str(tmp_path), "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "2 processes x 16 per micro-batch" in done.stdout
    assert done.stdout.count("done: accuracy") == 1
    assert furthest(one_process, tmp_path) < 1e-5
    assert furthest(one_process, one_process) == 0
    assert steps(tmp_path) == steps(one_process)
    ours, theirs = (json.loads((path / "final/metrics.json").read_text()) for path in (tmp_path, one_process))
    assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch_size", [16, 8, 4])
def test_accumulation_changes_nothing(one_process: Path, tmp_path: Path, micro_batch_size: int) -> None:
    alone(dataclasses.replace(tiny.recipe, final_weights="last"), tmp_path, micro_batch_size=micro_batch_size)
    assert furthest(one_process, tmp_path) < 1e-5
    assert steps(tmp_path) == steps(one_process)


@pytest.mark.slow
def test_a_mistake_is_reported_once_and_ends_both_processes(tmp_path: Path) -> None:
    done = start("torchrun", "batch_size=33", "--run-dir", str(tmp_path))
    assert done.returncode != 0
    reported = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert reported == [
        "error: batch_size=33 cannot be shared by 2 processes evenly; batch_size=32 or 34 would work, or 1, 3, 11, 33 "
        "processes"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_data_that_one_process_lacks_end_both(tmp_path: Path, process: int) -> None:
    """What follows is done by all processes together, and the other one would wait there."""
    recipe = f"tests/support/failing_process.py:absent_on_{process}"
    done = start("torchrun", "--run-dir", str(tmp_path), recipe=recipe)
    reported = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert reported == [f"error: data: nothing is there on the machine of process {process}"]


@pytest.mark.slow
def test_averaging_of_batch_statistics_makes_processes_agree(tmp_path: Path) -> None:
    done = start("torchrun", "freeze_plan.1.norm_statistics=update", "--run-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    base = load_file(tmp_path / "checkpoints/base/model.safetensors")
    state = weights(tmp_path)
    assert not torch.equal(state["backbone.block1.1.running_mean"], base["backbone.block1.1.running_mean"])
