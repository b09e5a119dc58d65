"""A standard output that nobody reads any more, or that has no room."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from commands import ROOT, SUPPORT, TINY
from runs import train


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "launcher", *words]


def environ() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", ["status run", "plan tests/support/tiny.py", "cache"])
def test_an_output_without_room_is_reported(words: str, tmp_path: Path) -> None:
    if words == "status run":
        train(tiny.recipe, tmp_path / "run")
        words = f"status {tmp_path / 'run'}"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            command(*words.split()),
            cwd=ROOT,
            env=environ(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "error: the standard output cannot be written to (No space left on device)",
    )


@pytest.mark.slow
def test_a_run_outlives_who_reads_its_output(tmp_path: Path) -> None:
    """A terminal that is closed, `| head`: the lines that follow stand in log.txt."""
    run_dir = tmp_path / "run"
    words = command("tests/support/tiny.py", "--workers", "0", "--no-report", "--run-dir", str(run_dir))
    process = subprocess.Popen(words, cwd=ROOT, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr as stderr:
        errors = stderr.read().decode()
    assert (process.wait(timeout=300), errors) == (0, "")
    log = (run_dir / "log.txt").read_text()
    assert "nobody can read this but here: the standard output is gone (Broken pipe)" in log
    assert "done: accuracy" in log


@pytest.mark.slow
def test_a_closed_output_is_no_fault_where_a_file_is_written(tmp_path: Path) -> None:
    train(tiny.recipe, tmp_path / "run")
    tiny.picture(tiny.Stripes(31, 1), 0).save(tmp_path / "one.png")
    words = ["predict", "run", "one.png", *TINY, "--to", "rows.csv"]
    closed = shlex.join(command(*words)) + " >&-"
    done = subprocess.run(closed, shell=True, cwd=tmp_path, env=environ(), stderr=subprocess.PIPE, text=True)  # noqa: S602
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 2
    assert not list(tmp_path.glob(".rows*"))
