"""kill -9 in the middle of each file of a save, and at random moments (their long version is benchmarks/kill.py)."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from commands import ROOT, SUPPORT, run_python
from launcher.verify.kills import launch_command, run_with_kills
from live_runs import start
from runs import train

pytestmark = pytest.mark.slow

PATHS = {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}


def assert_the_same(cut: Path, whole: Path) -> None:
    """Weights, averaged weights and metrics to the bit; nothing half is left."""
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("final/model.safetensors", "checkpoints/step-000012/ema.safetensors"):
        ours, theirs = load_file(cut / name), load_file(whole / name)
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert {path.name for path in cut.iterdir()} == {path.name for path in whole.iterdir()}
    names = [path.name for path in (cut / "checkpoints").iterdir()]
    assert [name for name in names if not name.startswith(("base", "step-"))] == []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny.resumable, run_dir)
    return run_dir


# Step 8 is saved in mid-epoch, in the second phase, and goes when step 9 is saved; step 6, the end of the phase that
# trained the head, stays.
FILES = ("model.safetensors", "ema.safetensors", "optimizer.pt", "progress.json", "MANIFEST.json")
DEATHS = [
    ("base model.safetensors", None),
    ("base MANIFEST.json", None),
    ("base rename", None),
    *((f"step-000008 {file}", 6) for file in (*FILES, "rename")),
    ("step-000009 prune", 9),
    ("step-000009 pruning", 9),
    ("final model.safetensors", 12),
]


@pytest.mark.parametrize(("at", "continues_at"), DEATHS, ids=[at for at, _ in DEATHS])
def test_killed_in_the_middle_of_a_file(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], at: str, continues_at: int | None
) -> None:
    run_dir = tmp_path / "run"
    words = (
        "-m",
        "launcher",
        str(SUPPORT / "killed_in_save.py"),
        "--workers",
        "0",
        "--no-report",
        "--run-dir",
        str(run_dir),
    )
    died = run_python(*words, cwd=tmp_path, env=PATHS | {"DIES_AT": at})
    assert died.code == -signal.SIGKILL, died.err
    folder, _, file = at.partition(" ")
    if not file.startswith("prun"):
        assert list(run_dir.rglob(f".writing-{folder}")), "it died somewhere else"

    train(tiny.resumable, run_dir)
    output = capsys.readouterr().out
    assert (f"continuing {run_dir} at step {continues_at}" in output) if continues_at else ("continuing" not in output)
    assert_the_same(run_dir, unbroken)


@pytest.mark.long
def test_killed_at_a_file_event_the_whole_run_dir_ends_like_the_unbroken_one(tmp_path: Path) -> None:
    """At all events of the beginning and of the end, and some between; crashing.py says what is compared."""
    words = (str(SUPPORT / "kill_server.py"), str(tmp_path), str(SUPPORT / "tiny.py"), "25", "1")
    done = run_python(*words, cwd=tmp_path, env=PATHS)
    summary = json.loads(done.out.splitlines()[-1])
    assert (done.code, summary["differences"]) == (0, 0), done.out
    assert summary["kills"] >= 30


def test_killed_and_given_the_same_command_again(unbroken: Path, tmp_path: Path) -> None:
    words = ("-m", "launcher", str(SUPPORT / "killed_in_save.py"), "--workers", "0", "--no-report", "--run-dir", "run")
    died = run_python(*words, cwd=tmp_path, env=PATHS | {"DIES_AT": "step-000008 optimizer.pt"})
    assert died.code == -signal.SIGKILL, died.err
    done = run_python(*words, cwd=tmp_path, env=PATHS)
    assert done.code == 0, done.err
    assert_the_same(tmp_path / "run", unbroken)


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_ends_to_the_bit_like_the_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{SUPPORT}")
    monkeypatch.setenv("SECONDS_OF_A_STEP", "0.5")  # 12 steps: too long to end between four kills
    whole, cut = tmp_path / "whole" / "run", tmp_path / "cut" / "run"
    whole.parent.mkdir()
    cut.parent.mkdir()
    if processes == 1:
        train(tiny.resumable, whole)
    else:
        assert start("torchrun, 2 processes", whole).wait(timeout=400) == 0
    words = ("--workers", "1")
    command = launch_command(str(SUPPORT / "slow_steps.py"), cut, *words, processes=processes)
    kills = run_with_kills(
        command, cut, kills=4, longest_seconds=2.5, draw=random.Random(processes), log=tmp_path / "log.txt"
    )
    assert len(kills) == 4, kills
    assert_the_same(cut, whole)
