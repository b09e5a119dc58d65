"""Each file of a run dir, damaged in each way: the same command ends like the undamaged run, or says what is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kill_server
import report_runs
import tiny
from launcher.errors import UserError
from launcher.report.end_of_run import left
from launcher.training import run_lock as lock_module
from launcher.training.run_lock import RunLock

RECIPE = dataclasses.replace(tiny.recipe, freeze_plan=tiny.recipe.freeze_plan[:1], ema_decay=0.9, cache="off")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all")


KINDS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": cut,
    "other JSON": lambda path: path.write_text("[3]\n"),
    "no JSON object": lambda path: path.write_text('{"a": {"b": 1}}\n'),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe\x00{" + path.read_bytes()[9:]),
    "folder": folder,
    "dangling link": dangling,
}

APPENDED = {"log.txt", "timing.jsonl", "proofs.jsonl"}
"""Records that nothing is made of again: a start goes on writing them, whatever stands in them."""
KEPT = {"recipe.py"}
"""The same: a copy for people."""
RESULTS = ("final/", "evaluation.", "report.html", "recipe.json", "environment.json")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that has ended, and one that was killed after the checkpoint of its first epoch."""
    base = tmp_path_factory.mktemp("runs")
    report_runs.train(RECIPE, base / "ended", left=left)
    shutil.copytree(base / "ended", base / "begun")
    for name in ("final", "evaluation.json", "evaluation.parquet", "report.html", "checkpoints/step-000006"):
        path = base / "begun" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {name: base / name for name in ("ended", "begun")}


def cases(run: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(run.rglob("*")):
        if path.is_file():
            yield from ((str(path.relative_to(run)), kind) for kind in KINDS)


@pytest.mark.long
@pytest.mark.parametrize("name", ["ended", "begun"])
def test_a_damaged_file(runs: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, unlike, refused = tmp_path / "run", [], 0
    whole = kill_server.picture(runs["ended"])
    for file, kind in cases(runs[name]):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(runs[name], run)
        KINDS[kind](run / file)
        try:
            report_runs.train(RECIPE, run, left=left)
        except UserError as error:
            refused += 1
            if len(error.problems) != 1 or str(run) not in str(error):
                unlike.append((file, kind, str(error)))
            continue
        except Exception as error:  # what a user would see as a traceback
            unlike.append((file, kind, repr(error)))
            continue
        finally:
            capsys.readouterr()
        # A finished run looks at its results and at whose it is, not at how it came to them.
        if file in APPENDED | KEPT or (name == "ended" and not file.startswith(RESULTS)):
            shutil.rmtree(run / file) if (run / file).is_dir() else (run / file).unlink(missing_ok=True)
            shutil.copy(runs["ended"] / file, run / file)
        there = kill_server.picture(run)
        differing = [key for key in {*whole, *there} if whole.get(key) != there.get(key)]
        if differing:
            unlike.append((file, kind, differing))  # type: ignore[arg-type]
    assert unlike == [], "\n".join(map(str, unlike))
    assert refused > 10


def test_a_lock_that_does_not_say_whose_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"", b"{", b"[]", b"\xff"):
        (tmp_path / "LOCK").write_bytes(content)
        with pytest.raises(UserError, match=r"does not say who holds it .* remove it, or give the same command again"):
            RunLock(tmp_path).acquire(lambda _: None)
        past = time.time() - 60  # longer than a living holder is still
        os.utime(tmp_path / "LOCK", (past, past))
        lock = RunLock(tmp_path)
        lock.acquire(lambda _: None)
        assert lock.is_held()
        lock.release()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_without_its_recipe_lets_no_other_in(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["ended"], run)
    (run / "recipe.json").unlink()
    (run / "final/metrics.json").unlink()
    other = dataclasses.replace(RECIPE, seed=1)
    with pytest.raises(UserError, match="cannot be told whether the run is of this recipe"):
        report_runs.train(other, run, left=left)
    report_runs.train(RECIPE, run, left=left)
    assert (run / "recipe.json").read_bytes() == (runs["ended"] / "recipe.json").read_bytes()
    assert json.loads((run / "final/metrics.json").read_text())


def test_of_two_that_take_over_a_dead_lock_one_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of them is held up between looking at the holder and taking its place."""
    dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "process_started": 0}
    (tmp_path / "LOCK").write_text(json.dumps(dead))
    looked, looks = threading.Event(), lock_module._is_alive

    def slow(holder: dict[str, Any], silence: float) -> bool:
        if threading.current_thread().name == "slow":
            looked.set()
            time.sleep(0.5)
        return looks(holder, silence)

    monkeypatch.setattr(lock_module, "_is_alive", slow)
    has_it: dict[str, RunLock] = {}
    refused: list[str] = []

    def take(lock: RunLock) -> None:
        try:
            lock.acquire(lambda _: None)
            has_it[threading.current_thread().name] = lock
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take, args=(RunLock(tmp_path),), name=name) for name in ("slow", "quick")]
    threads[0].start()
    looked.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert list(has_it) == ["slow"]
    assert len(refused) == 1
    assert "another run is at work in it" in refused[0]
    assert has_it["slow"].is_held()
    has_it["slow"].release()
    assert list(tmp_path.iterdir()) == []
