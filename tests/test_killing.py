"""kill -9 at random moments, on one process and on two; the long version is benchmarks/kill.py."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiny
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_interruption import start
from test_run import train

from launcher.results.killing import launch_command, run_with_kills


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_ends_to_the_bit_like_the_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("SECONDS_OF_A_STEP", "0.5")  # 12 steps: too long to end between four kills
    whole, cut = tmp_path / "whole" / "run", tmp_path / "cut" / "run"
    whole.parent.mkdir()
    cut.parent.mkdir()
    if processes == 1:
        train(tiny.resumable, whole)
    else:
        assert start("torchrun, 2 processes", whole).wait(timeout=400) == 0
    words = ("--workers", "1")
    command = launch_command(str(ROOT / "tests/slow.py"), cut, *words, processes=processes)
    kills = run_with_kills(
        command, cut, kills=4, longest_seconds=2.5, draw=random.Random(processes), log=tmp_path / "log.txt"
    )
    assert len(kills) == 4, kills
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("final/model.safetensors", "checkpoints/step-000012/ema.safetensors"):
        ours, theirs = load_file(cut / name), load_file(whole / name)
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
    assert not (cut / "LOCK").exists()
