"""Stored features with several processes, with kills while they are computed, and with signals."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from commands import ROOT, SUPPORT
from feature_stores import difference, store_of
from launcher.verify.kills import _kill_session, launch_command

RECIPE = str(SUPPORT / "slow_features.py")


def blocks(run_dir: Path) -> int:
    """Blocks of images that the run has computed, over all its starts."""
    file = run_dir.parent / "blocks"
    return file.stat().st_size if file.exists() else 0


def start(run_dir: Path, cache: Path, processes: int, seconds_of_a_block: float = 0.0) -> subprocess.Popen[bytes]:
    run_dir.parent.mkdir(exist_ok=True)
    environ = {"PYTHONPATH": f"{ROOT}:{SUPPORT}", "LAUNCHER_CACHE": str(cache)}
    environ = os.environ | environ | {"SECONDS_OF_A_BLOCK": str(seconds_of_a_block)}
    command = launch_command(RECIPE, run_dir, "--workers", "1", processes=processes)
    with (run_dir.parent / "output").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environ, start_new_session=True)


def finish(process: subprocess.Popen[bytes], run_dir: Path) -> None:
    assert process.wait(timeout=400) == 0, (run_dir.parent / "output").read_text()


@pytest.fixture(scope="module", params=[1, 2])
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, Path]:
    """Number of processes, run dir, and the folder of stored features."""
    folder = tmp_path_factory.mktemp("unbroken")
    run_dir, cache = folder / "whole" / "run", folder / "cache"
    finish(start(run_dir, cache, request.param), run_dir)
    return request.param, run_dir, cache


def shards(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.glob("features/*/*.rows")}


@pytest.mark.long
def test_killed_while_features_are_computed(unbroken: tuple[int, Path, Path], tmp_path: Path) -> None:
    processes, whole, whole_cache = unbroken
    run_dir, cache = tmp_path / "cut" / "run", tmp_path / "cache"
    # 10 + 3 blocks for each of two phases, shared by the processes: in the first, and in the second phase's.
    for at_block in (3, 5 if processes == 2 else 8, 12 if processes == 2 else 20):
        process = start(run_dir, cache, processes, seconds_of_a_block=0.3)
        end = time.monotonic() + 300
        while blocks(run_dir) < at_block:
            assert process.poll() is None, (run_dir.parent / "output").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        _kill_session(process.pid)
        process.wait()
    finish(start(run_dir, cache, processes), run_dir)
    # Whole shards were not computed again: three kills cost no more than a shard of each process and what was drawn in.
    assert blocks(run_dir) < 2 * blocks(whole)
    assert (run_dir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert difference(run_dir, whole) == 0
    assert shards(cache) == shards(whole_cache)
    assert not list(cache.glob("features/*/.*.draft")), "the next start removes what a kill left"


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(unbroken: tuple[int, Path, Path], tmp_path: Path) -> None:
    processes, whole, cache = unbroken
    run_dir = tmp_path / "other" / "run"
    finish(start(run_dir, tmp_path / "cache", 3 - processes), run_dir)
    other = load_file(run_dir / "final/model.safetensors")
    for name, tensor in load_file(whole / "final/model.safetensors").items():
        # AdamW makes more of rounding than SGD.
        assert (tensor.double() - other[name].double()).abs().max() < 1e-3, name
    assert shards(tmp_path / "cache").keys() == shards(cache).keys()
    ours, theirs = shards(tmp_path / "cache"), shards(cache)
    for name, rows in ours.items():
        mine, yours = (torch.frombuffer(bytearray(r[:-16]), dtype=torch.float32) for r in (rows, theirs[name]))
        assert torch.allclose(mine, yours, atol=1e-5), name


@pytest.mark.long
@pytest.mark.parametrize("asked_by", [signal.SIGTERM, "STOP"])
def test_asked_to_stop_while_features_are_computed(
    asked_by: signal.Signals | str, unbroken: tuple[int, Path, Path], tmp_path: Path
) -> None:
    processes, whole, _ = unbroken
    run_dir, cache = tmp_path / "cut" / "run", tmp_path / "cache"
    process = start(run_dir, cache, processes, seconds_of_a_block=0.5)
    while blocks(run_dir) < 3:
        assert process.poll() is None, (run_dir.parent / "output").read_text()
        time.sleep(0.02)
    if asked_by == "STOP":
        (run_dir / "STOP").touch()
    else:
        process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=120)
    assert code == (85 if processes == 1 else 1)
    assert (run_dir / "STOPPED.json").exists()
    assert blocks(run_dir) < 13 / processes, "it left in the middle"
    finish(start(run_dir, cache, processes), run_dir)
    assert difference(run_dir, whole) == 0


@pytest.mark.slow
def test_two_runs_at_once_compute_features_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    runs = [tmp_path / str(number) / "run" for number in range(2)]
    started = [start(run_dir, cache, 1, seconds_of_a_block=0.2) for run_dir in runs]
    for process, run_dir in zip(started, runs, strict=True):
        finish(process, run_dir)
    assert sum(blocks(run_dir) for run_dir in runs) == 26
    assert difference(*runs) == 0
    assert all(store_of(run_dir) == {"linear_probe": "disk", "partly": "disk"} for run_dir in runs)
