"""Being asked to stop: every way of asking, what is saved, and what the next start makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import tiny
from launcher.training.stop import FIRST_CTRL_C, RECENT_STEPS, SECOND_CTRL_C, Interruption
from live_runs import processes_of, start, steps_reported, wait_for
from runs import train


def ended(process: subprocess.Popen[str], seconds: float = 240) -> int:
    """The exit code of a process; one that does not end is ended, with its workers, and the test fails."""
    wait_for(lambda: process.poll() is not None, "the end of the process", process, seconds)
    return process.returncode


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny.resumable, run_dir)
    return run_dir


def assert_ends_like(unbroken: Path, run_dir: Path, *, to_the_bit: bool) -> None:
    ours, theirs = (load_file(path / "final/model.safetensors") for path in (run_dir, unbroken))
    if to_the_bit:
        assert [name for name in theirs if ours[name].ne(theirs[name]).any()] == []
        assert (run_dir / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    else:
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-5


# Exit code: ours where the process is our own; 1 from a launcher that waits for its processes; minus the signal from
# one that dies of it, and leaves its processes to find out. Then nobody can tell them which signal it was.
CASES = [
    ("python", signal.SIGTERM, "preempted", 85),
    ("python", signal.SIGUSR1, "preempted", 85),
    ("python", signal.SIGUSR2, "preempted", 85),
    ("python", signal.SIGINT, "interrupted", 130),
    ("python", None, "asked to stop", 85),
    ("accelerate, 1 process", signal.SIGTERM, "preempted", -15),
    ("accelerate, 1 process", signal.SIGUSR1, "preempted", -10),
    ("accelerate, 1 process", signal.SIGUSR2, "preempted", -12),
    ("accelerate, 1 process", signal.SIGINT, "preempted", -2),
    ("accelerate, 1 process", "Ctrl-C", "interrupted", -2),
    ("accelerate, 1 process", None, "asked to stop", 1),
    *(
        case
        for way in ("accelerate, 2 processes", "torchrun, 2 processes")
        for case in (
            (way, signal.SIGTERM, "preempted", 1),
            (way, signal.SIGUSR1, "preempted", -10),
            (way, signal.SIGUSR2, "preempted", -12),
            (way, signal.SIGINT, "interrupted", 1),
            (way, None, "asked to stop", 1),
        )
    ),
]
QUICK = (CASES[5], CASES[-2])
"""One of accelerate and one of torchrun that run with the quick tests; the others differ in the signal."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("way", "asked_by", "reason", "code"),
    [pytest.param(*case, marks=[] if case[0] == "python" or case in QUICK else pytest.mark.long) for case in CASES],
)
def test_saved_within_a_step_and_continued(
    unbroken: Path, tmp_path: Path, way: str, asked_by: signal.Signals | str | None, reason: str, code: int
) -> None:
    run_dir = tmp_path / "run"
    process = start(way, run_dir)
    # In the middle of the second epoch of the first phase.
    wait_for(lambda: steps_reported(run_dir) >= 5, "step 5", process)
    num_ranks = 2 if "2" in way else 1
    assert len(processes_of(run_dir)) >= num_ranks * 3 + (way != "python"), "each rank has two data workers"
    launcher_dies = code < 0 and asked_by != "Ctrl-C"
    if launcher_dies:
        (tmp_path / "hold").touch()  # of SIGINT it dies after seconds, when a short run would have ended
    if asked_by is None:
        (run_dir / "STOP").touch()
    elif isinstance(asked_by, signal.Signals):
        os.kill(process.pid, asked_by)  # the launcher alone, as a scheduler does
    else:
        os.killpg(process.pid, signal.SIGINT)  # the whole group, as a terminal does
    asked_at = steps_reported(run_dir)
    assert ended(process) == code
    if launcher_dies:
        asked_at = steps_reported(run_dir)
        (tmp_path / "hold").unlink()
    marker = run_dir / "STOPPED.json"
    wait_for(marker.exists, "the marker", process)
    marker_row = json.loads(marker.read_text())
    assert marker_row["reason"] == reason
    if isinstance(asked_by, signal.Signals):
        assert marker_row["signal"] == ("the launcher died" if code < 0 else asked_by.name)
    # The step under way; and one more where a launcher hands the signal on, or a file is looked for every 0.25 s.
    handed_on = code == 1 or asked_by is None
    assert 5 <= marker_row["step"] <= asked_at + 1 + handed_on
    assert marker_row["step"] == steps_reported(run_dir)
    assert (run_dir / f"checkpoints/step-{marker_row['step']:06d}/MANIFEST.json").exists()
    wait_for(lambda: not processes_of(run_dir), "the last process to leave", process)
    assert not (run_dir / "LOCK").exists()

    if num_ranks == 1:
        train(tiny.resumable, run_dir, resume="must")
        assert_ends_like(unbroken, run_dir, to_the_bit=True)
        assert not marker.exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_signal_to_another_process_than_the_main_one_is_named(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start("torchrun, 2 processes", run_dir)
    wait_for(lambda: steps_reported(run_dir) >= 2, "step 2", process)
    for pid in processes_of(run_dir):  # data workers ignore it
        if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGUSR1)
    assert ended(process) == 1
    marker = json.loads((run_dir / "STOPPED.json").read_text())
    assert (marker["reason"], marker["signal"]) == ("preempted", "SIGUSR1")


@pytest.mark.long
@pytest.mark.parametrize(("first", "then", "at_step"), [("torchrun", "python", 5), ("python", "torchrun", 7)])
def test_continued_on_another_number_of_processes(tmp_path: Path, first: str, then: str, at_step: int) -> None:
    """In mid-epoch, from two to one in the first phase and from one to two in the second."""
    ways = {"python": "python", "torchrun": "torchrun, 2 processes"}
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    train(tiny.parity, whole)
    process = start(ways[first], run_dir, recipe="tests/support/slow_steps.py:parity")
    wait_for(lambda: steps_reported(run_dir) >= at_step, f"step {at_step}", process)
    (run_dir / "STOP").touch()
    ended(process)
    assert json.loads((run_dir / "STOPPED.json").read_text())["step"] < 12
    again = start(ways[then], run_dir, recipe="tests/support/slow_steps.py:parity")
    assert ended(again) == 0
    assert_ends_like(whole, run_dir, to_the_bit=False)


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start("python", run_dir)
    wait_for(lambda: steps_reported(run_dir) >= 1, "step 1", process)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process, seconds=60) == 1  # not 130, after which the state is saved
    output = (tmp_path / "output.txt").read_text()
    assert [output.count(f"{line}\n") for line in (FIRST_CTRL_C, SECOND_CTRL_C)] == [1, 1]
    assert output.endswith(f"{SECOND_CTRL_C}\n")


def test_a_deadline_is_met_with_time_for_a_step_and_two_saves(tmp_path: Path) -> None:
    watch = Interruption(tmp_path, is_main_process=True, num_processes=1, stop_at=time.time() + 100)
    assert watch.agree() == (None, False)
    watch.seconds_of_steps.extend([20.0, 0.1])  # the longest counts
    watch.seconds_of_a_save = 30.0
    assert watch.agree(save_is_due=True) == (None, True)
    watch.seconds_of_a_save = 40.0
    assert watch.agree() == ("time limit", False)
    watch.seconds_of_steps.extend([0.1] * RECENT_STEPS)
    assert watch.agree() == (None, False)


@pytest.mark.slow
def test_a_run_stops_before_its_deadline_and_then_goes_on(unbroken: Path, tmp_path: Path) -> None:
    from launcher.training.stop_request import StoppedError

    with pytest.raises(StoppedError, match="time limit"):
        train(tiny.resumable, tmp_path / "run", stop_at=time.time() + 1)
    assert json.loads((tmp_path / "run/STOPPED.json").read_text())["reason"] == "time limit"
    train(tiny.resumable, tmp_path / "run")
    assert_ends_like(unbroken, tmp_path / "run", to_the_bit=True)
