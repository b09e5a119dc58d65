"""One owner, no hang, no update that is not finite, no half checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

import tiny
from launcher import backbones, files, phases
from launcher.errors import UserError
from launcher.training import loop, run_lock
from launcher.training.micro_batch_fit import largest_that_fits
from launcher.training.run_lock import RunLock
from live_runs import processes_of, start, steps_reported, wait_for
from runs import rows, train


def test_a_run_dir_has_one_owner_who_is_named(tmp_path: Path) -> None:
    first = RunLock(tmp_path)
    reported: list[str] = []
    first.acquire(reported.append)
    with pytest.raises(UserError, match=f"another run is at work in it \\(process {os.getpid()} on "):
        RunLock(tmp_path).acquire(reported.append)
    first.release()
    second = RunLock(tmp_path)
    second.acquire(reported.append)
    second.release()
    assert reported == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_lock_of_a_dead_process_is_taken_over_and_reported(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from launcher.training.run_lock import RunLock\n"
    code += "RunLock(Path(sys.argv[1])).acquire(print); os.kill(os.getpid(), 9)"
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert dead.returncode == -signal.SIGKILL
    reported: list[str] = []
    owner = RunLock(tmp_path)
    owner.acquire(reported.append)
    owner.release()
    assert len(reported) == 1
    assert "taking over the lock of a dead run (process " in reported[0]


@pytest.mark.parametrize(
    ("silence", "job", "restarts", "taken"),
    [
        pytest.param(5, None, None, False, id="alive"),
        pytest.param(200, None, None, True, id="silent"),
        pytest.param(5, "77", None, False, id="another-step-of-the-same-job"),
        pytest.param(5, "77", "1", True, id="earlier-life-of-the-same-job"),
        pytest.param(5, "78", "1", False, id="another-job"),
    ],
)
def test_a_lock_of_another_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    silence: float,
    job: str | None,
    restarts: str | None,
    taken: bool,
) -> None:
    """It holds while it is touched; a job that was started again is told from another one."""
    monkeypatch.setattr(run_lock, "EARLIER_ATTEMPT_MAY_TAKE_SECONDS", 0.1)
    file = tmp_path / "LOCK"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1, "job": "77", "life": 1, "since": "today", "token": "x"}))
    os.utime(file, (time.time() - silence, time.time() - silence))
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    if restarts is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    ours = RunLock(tmp_path)
    if taken:
        ours.acquire(lambda _: None)
        assert ours.is_held()
        ours.release()
    else:
        with pytest.raises(UserError, match="process 1 on elsewhere since today"):
            ours.acquire(lambda _: None)
        assert json.loads(file.read_text())["host"] == "elsewhere"


@pytest.mark.slow
def test_an_earlier_life_at_work_is_asked_to_stop_and_can_save_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm has lost a node and started the job again; on that node its first life is still training."""
    monkeypatch.setattr(run_lock, "EARLIER_ATTEMPT_MAY_TAKE_SECONDS", 1.0)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    earlier, later = RunLock(tmp_path), RunLock(tmp_path)
    reported: list[str] = []
    earlier.acquire(reported.append)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    later.acquire(reported.append)
    assert (tmp_path / "STOP").read_text() == "preempted"
    assert "asking it to stop" in reported[0]
    assert later.is_held()
    assert not earlier.is_held()
    earlier.release()
    assert later.is_held()
    later.release()


def test_a_lock_is_touched_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT_EVERY_SECONDS", 0.05)
    owner = RunLock(tmp_path)
    owner.acquire(lambda _: None)
    os.utime(owner.path, (0, 0))
    end = time.monotonic() + 30
    while owner.path.stat().st_mtime == 0 and time.monotonic() < end:
        time.sleep(0.05)
    assert owner.path.stat().st_mtime > 0
    owner.release()


def poisoned(monkeypatch: pytest.MonkeyPatch, at_steps: set[int]) -> None:
    original = loop.inputs_of  # type: ignore[attr-defined]

    def inputs_of(run: Any, state: Any, batch: Any) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        inputs, targets = original(run, state, batch)
        return tuple(x * float("nan") if run.progress.step in at_steps else x for x in inputs), targets

    monkeypatch.setattr(loop, "inputs_of", inputs_of)


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_stops_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, {4})
    recipe = dataclasses.replace(tiny.recipe, checkpoint_every_steps=1)
    with pytest.raises(UserError, match=r"step 5: the gradient is not finite; its samples: \d+ \(stripes/0/\d+\), "):
        train(recipe, tmp_path)
    (newest,) = (path for path in (tmp_path / "checkpoints").glob("step-*") if path.name == "step-000004")
    assert all(tensor.isfinite().all() for tensor in load_file(newest / "model.safetensors").values())


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_reported_at_the_next_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint comes between: the second step of the second epoch is told at the epoch's end, and nothing of the
    epoch is evaluated, saved, or left when the same command goes on."""
    train(tiny.parity, tmp_path / "whole")
    with monkeypatch.context() as patched:
        poisoned(patched, {4})
        with pytest.raises(UserError, match=r"step 5: the gradient is not finite; .*; nothing of it was saved"):
            train(tiny.parity, tmp_path / "cut")
    assert len(rows(tmp_path / "cut", "epoch")) == 1
    assert sorted(path.name for path in (tmp_path / "cut" / "checkpoints").glob("step-*")) == ["step-000003"]
    train(tiny.parity, tmp_path / "cut")
    ours, theirs = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("cut", "whole"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert rows(tmp_path / "cut", "step") == rows(tmp_path / "whole", "step")


@pytest.mark.slow
def test_skipped_steps_are_counted_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, {1, 4})
    recipe = dataclasses.replace(tiny.recipe, on_nonfinite="skip", max_skipped_steps=2)
    train(recipe, tmp_path / "two")
    steps = rows(tmp_path / "two", "step")
    assert [row["step"] for row in steps if row.get("skipped")] == [2, 5]
    assert [row["step"] for row in steps if row["loss"] is None] == [2, 5]
    assert len(steps) == 12
    poisoned(monkeypatch, {1, 4, 5})
    with pytest.raises(UserError, match="2 steps were skipped before it, which is all that max_skipped_steps allows"):
        train(recipe, tmp_path / "three")


FILES = [
    "model.safetensors",
    "ema.safetensors",
    "outputs.safetensors",
    "optimizer.pt",
    "progress.json",
    "MANIFEST.json",
]


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_at_any_file_loses_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """The third save fails; the run says so, and the same command then ends as if nothing had been."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(tiny.resumable, whole)
    sync, saves = files.sync, 0

    def full(path: Path) -> None:
        nonlocal saves
        saves += path.name == file
        if path.name == file and saves > 2:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise OSError(28, "No space left on device")
        sync(path)

    with monkeypatch.context() as patched:
        patched.setattr(files, "sync", full)
        with pytest.raises(UserError, match=r"could not be written \(No space left on device\); step-0\d+ is complete"):
            train(tiny.resumable, cut)
    assert not list((cut / "checkpoints").glob(".writing-*")), "half a checkpoint is in the way on a full disk"
    train(tiny.resumable, cut, resume="must")
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ours, theirs = (load_file(path / "final/model.safetensors") for path in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny.recipe, run_dir)
    return run_dir


NO_ROOM, READ_ONLY = (OSError(28, "No space left on device"), OSError(30, "Read-only file system"))
OF_SAFETENSORS = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
AGAIN = "make room, and give the same command again"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "file", "error", "line"),
    [
        ("files.write_atomic", "recipe.json", NO_ROOM, f"--run-dir {{run}}: cannot be written ({{error}}); {AGAIN}"),
        ("files.write_atomic", "environment.json", READ_ONLY, "--run-dir {run}: cannot be written ({error}); "),
        ("training.run_dir.write_atomic", "recipe.py", NO_ROOM, "--run-dir {run}: cannot be written ({error}); "),
        ("training.data_identity.write_atomic", "data.npz", NO_ROOM, "--run-dir {run}: cannot be written ({error}); "),
        (
            "training.checkpoint.save_tensors",
            "model.safetensors",
            NO_ROOM,
            f"{{run}}/checkpoints: cannot be written ({{error}}); {AGAIN}",
        ),
        (
            "training.checkpoint.save_tensors",
            "model.safetensors",
            OF_SAFETENSORS,
            f"{{run}}/checkpoints: cannot be written (model.safetensors: {OF_SAFETENSORS}); {AGAIN}",
        ),
        (
            "training.final.save_tensors",
            "model.safetensors",
            NO_ROOM,
            "{run}: cannot be read or written ({error}); make room; then the same command continues from step 12",
        ),
        (
            "training.final.save_tensors",
            "model.safetensors",
            OF_SAFETENSORS,
            "{run}: no space left on the disk; make room; then the same command continues from step 12",
        ),
        (
            "files.sync",
            "metrics.json",
            READ_ONLY,
            "{run}: cannot be read or written ({error}); make it writable; then the same command continues from ",
        ),
    ],
    ids=[
        "recipe.json",
        "environment.json",
        "recipe.py",
        "data.npz",
        "base",
        "base, told by safetensors",
        "final",
        "final, told by safetensors",
        "final, read-only",
    ],
)
def test_a_disk_that_takes_no_file_of_the_beginning_or_the_end_is_one_line(
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    file: str,
    error: Exception,
    line: str,
) -> None:
    """And the same command then ends as if nothing had been."""
    run_dir = tmp_path / "run"
    original = pkgutil.resolve_name(f"launcher.{function}")

    def refusing(*arguments: Any) -> None:
        if any(isinstance(one, Path) and one.name == file for one in arguments):
            raise error
        original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(f"launcher.{function}", refusing)
        with pytest.raises(UserError) as raised:
            train(tiny.recipe, run_dir)
    (reported,) = raised.value.problems
    assert reported.startswith(line.format(run=run_dir, error=getattr(error, "strerror", error)))
    assert not (run_dir / "final").exists()
    train(tiny.recipe, run_dir)
    assert {path.name for path in run_dir.iterdir()} == {path.name for path in unbroken.iterdir()}
    for name in ("final/model.safetensors", "final/metrics.json", "metrics.jsonl", "recipe.json", "data.npz"):
        assert (run_dir / name).read_bytes() == (unbroken / name).read_bytes(), name


@pytest.mark.slow
def test_a_head_only_checkpoint_holds_the_head_only(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        tiny.recipe, backbone=tiny.TinyBackbone(width=256), freeze_plan=phases.linear_probe(epochs=1)
    )
    train(recipe, tmp_path)
    base = (tmp_path / "checkpoints/base/model.safetensors").stat().st_size
    newest = sum(path.stat().st_size for path in (tmp_path / "checkpoints/step-000003").iterdir())
    assert newest < base / 100


@pytest.mark.slow
def test_a_checkpoint_of_a_resnet_50_whose_head_trains_is_under_a_megabyte(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        tiny.resumable,
        backbone=backbones.Torchvision(name="resnet50", weights=None, image_size=32),
        freeze_plan=phases.linear_probe(epochs=1),
    )
    train(recipe, tmp_path)
    newest = tmp_path / "checkpoints/step-000003"
    assert {path.name for path in newest.iterdir()} == set(FILES)  # and Adam's two moments
    assert sum(path.stat().st_size for path in newest.iterdir()) < 1_000_000
    assert (tmp_path / "checkpoints/base/model.safetensors").stat().st_size > 90_000_000  # once a run


@pytest.mark.long
def test_a_run_that_waits_for_an_image_for_ever_leaves_when_asked(tmp_path: Path) -> None:
    """Not after hang_limit_seconds, which is 300; schedulers kill after 30."""
    run_dir = tmp_path / "run"
    process = start("python", run_dir, recipe="tests/support/failing_process.py:blocks")
    output = tmp_path / "output.txt"
    wait_for(lambda: "phase 1/1" in output.read_text(), "training", process)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: process.poll() is not None, "the end", process, seconds=60)
    assert process.returncode == 1
    wait_for(lambda: not processes_of(run_dir), "the data worker to end", process, seconds=10)
    last = output.read_text().splitlines()[-1]
    assert last.startswith("error: process 0 on ")
    assert " was asked to stop, but has waited for images for " in last
    assert last.endswith(": it ends without saving; the same command continues from the last checkpoint")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGRTMAX"), reason="there is no free signal")
def test_a_run_that_hangs_says_where_its_data_worker_is(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start("python", run_dir, recipe="tests/support/failing_process.py:hangs")
    wait_for(lambda: process.poll() is not None, "the end", process, seconds=60)
    assert process.returncode == 1
    wait_for(lambda: not processes_of(run_dir), "the data worker to end", process, seconds=10)
    output = (tmp_path / "output.txt").read_text()
    assert re.search(r', pid \d+:\n(.*\n)*Current thread .+\n  File .+failing_process.py", line \d+ in read\n', output)
    assert " made no progress for " in output.splitlines()[-1]


@pytest.mark.long
@pytest.mark.parametrize("fault", ["dies", "sleeps"])
def test_a_process_that_dies_or_sleeps_ends_the_others(tmp_path: Path, fault: str) -> None:
    run_dir = tmp_path / "run"
    process = start("torchrun, 2 processes", run_dir, recipe=f"tests/support/failing_process.py:{fault}")
    begin = time.monotonic()
    wait_for(lambda: process.poll() is not None, "the end of all processes", process)
    wait_for(lambda: not processes_of(run_dir), "the last process to leave", process, seconds=60)
    output = (tmp_path / "output.txt").read_text()
    assert process.returncode != 0
    if fault == "sleeps":
        # The limit is 10 s; the innocent process would have waited 15 s longer.
        assert "process 1 on " in output
        assert "made no progress for" in output
        assert "time.sleep(3600)" in output
    else:
        assert "exitcode  : -9" in output or "Signal 9 (SIGKILL)" in output
    assert time.monotonic() - begin < 200
    assert steps_reported(run_dir) == 0


@pytest.mark.parametrize("fits", [1, 5, 16, 100])
def test_the_largest_micro_batch_that_fits(fits: int) -> None:
    tried: list[int] = []

    def attempt(size: int) -> None:
        tried.append(size)
        if size > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")

    expected = max(size for size in (1, 2, 4, 8, 16, 32) if size <= fits)
    assert largest_that_fits([1, 2, 4, 8, 16, 32], attempt) == expected
    assert tried[0] == 32


def test_nothing_fits() -> None:
    def attempt(size: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="not even one"):
        largest_that_fits([1, 2], attempt)
