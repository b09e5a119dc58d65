"""Planted faults, each through the real command: caught at the first checkpoint, and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import ROOT, SUPPORT, RunCli
from processes import start

PATHS = {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}
NUDGED = "1 frozen tensor changed on process 0: backbone.block1.0.weight"
NORM = (
    "3 frozen tensors changed on process 0: backbone.block1.1.running_mean, backbone.block1.1.running_var, "
    "backbone.block1.1.num_batches_tracked"
)
WHY = "something wrote to them (a hook, a shared tensor, a module put in training mode by hand)"


@pytest.mark.parametrize(("fault", "reported"), [("nudged", NUDGED), ("norm", NORM)])
def test_what_is_frozen_and_moves_is_named(run_cli: RunCli, tmp_path: Path, fault: str, reported: str) -> None:
    done = run_cli(
        str(ROOT / f"tests/support/planted_drift.py:{fault}"), "--run-dir", "run", "--workers", "0", env=PATHS
    )
    assert done.code == 2
    assert [line for line in done.err.splitlines() if line] == [f"error: phase linear_probe: {reported}; {WHY}"]
    assert_nothing_was_kept(tmp_path / "run")


@pytest.mark.slow
def test_a_weight_that_one_of_two_processes_changes_is_named(tmp_path: Path) -> None:
    words = ("--run-dir", str(tmp_path / "run"), "--workers", "0")
    done = start("torchrun", *words, recipe="tests/support/planted_drift.py:apart")
    assert done.returncode == 1  # torchrun's own; that of its processes is 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        "error: phase full_finetune: processes 0 and 1 hold different values in 1 tensor: backbone.block1.0.bias"
    ]
    assert "exitcode  : 2" in done.stderr
    assert_nothing_was_kept(tmp_path / "run")


def test_verify_says_so(run_cli: RunCli) -> None:
    done = run_cli("verify", str(SUPPORT / "planted_drift.py:norm"), "--processes", "1", "--steps", "2", env=PATHS)
    assert done.code == 1, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("the recipe trains")]
    assert "BROKEN" in line
    for buffer in ("running_mean", "running_var", "num_batches_tracked"):
        assert f"backbone.block1.1.{buffer}" in done.out


def assert_nothing_was_kept(run_dir: Path) -> None:
    assert not (run_dir / "final").exists()
    assert not list((run_dir / "checkpoints").glob("step-*"))
    assert not (run_dir / "LOCK").exists()
