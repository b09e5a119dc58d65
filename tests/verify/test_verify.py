"""`verify` on recipes that keep the promises, and on one with a planted fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import ROOT, SUPPORT, RunCli
from launcher.recipe.loading import load_recipe
from launcher.verify.rehearse import Rehearsal
from launcher.verify.verify import Verification

PATHS = {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}


@pytest.mark.long
def test_a_sound_recipe(run_cli: RunCli) -> None:
    done = run_cli("verify", str(SUPPORT / "tiny.py"), "--processes", "1,2", env=PATHS)
    assert done.code == 0, done.out + done.err
    assert "BROKEN" not in done.out
    rows = {line.split("  ")[0].strip(): line for line in done.out.splitlines()}
    assert "holds" in rows["parity: 2 processes"]
    assert "holds" in rows["parity: 1 process --micro-batch 16"]
    assert "equal to the bit" in rows["exact resume: kill -9, and the same command again"]
    assert "linear_probe: 79 of 79, full_finetune: 79 of 79" in rows["every sample once an epoch"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Verification, Rehearsal])
def test_data_workers_are_those_asked_for(kind: type[Verification], tmp_path: Path) -> None:
    runs = kind(load_recipe(str(SUPPORT / "tiny.py")), tmp_path, [1], 2, lambda _: None, workers=2)
    assert runs.run("reference", 1) is None
    assert json.loads((tmp_path / "reference/plan.json").read_text())["machine"]["data_workers"] == 2
    assert "--workers 2" in " ".join(runs.command("killed", 1))


@pytest.mark.parametrize("command", ["verify", "rehearse"])
def test_data_workers_are_an_option(command: str, run_cli: RunCli) -> None:
    done = run_cli(command, str(SUPPORT / "tiny.py"), "--workers", "-1")
    assert done.code == 2
    assert done.err == "error: Invalid value for '--workers': Input should be greater than or equal to 0\n"


@pytest.mark.long
def test_an_order_that_depends_on_the_process(run_cli: RunCli) -> None:
    done = run_cli("verify", str(SUPPORT / "planted_disorder.py"), "--processes", "1,2", "--steps", "2", env=PATHS)
    assert done.code == 1
    (line,) = [line for line in done.out.splitlines() if line.startswith("parity: 2 processes")]
    assert "BROKEN" in line
    assert "processes 0 and 1 see different data (train_hash)" in " ".join(done.out.split())


@pytest.mark.long
def test_augmentation_that_depends_on_the_process(run_cli: RunCli) -> None:
    done = run_cli(
        "verify", str(SUPPORT / "planted_disorder.py:misdrawn"), "--processes", "1,2", "--steps", "2", env=PATHS
    )
    assert done.code == 1
    (line,) = [line for line in done.out.splitlines() if line.startswith("parity: 2 processes")]
    assert "BROKEN" in line
    assert "largest difference" in line
