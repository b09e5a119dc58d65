"""Several runs side by side."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tiny
from conftest import RunCli
from test_run import train

from launcher import optim


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(tiny.recipe, folder / "a")
    train(dataclasses.replace(tiny.recipe, optim=optim.SGD(lr=0.3), seed=1), folder / "b")
    return folder


def test_the_best_first_beside_what_differs(runs: Path, run_cli: RunCli) -> None:
    done = run_cli("compare", "a", "b", "--as", "json", cwd=runs)
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert {(row["run"], row["optim.lr"], row["seed"]) for row in rows} == {("a", 0.1, 0), ("b", 0.3, 1)}
    assert rows[0]["accuracy"] >= rows[1]["accuracy"]
    for row in rows:
        assert row["accuracy"] == json.loads((runs / row["run"] / "final/metrics.json").read_text())["accuracy"]
    header, *lines = run_cli("compare", "a", "b", "--as", "csv", "--by", "loss", cwd=runs).out.splitlines()
    assert header.split(",")[:6] == ["run", "state", "step", "optim.lr", "seed", "loss"]
    losses = [float(line.split(",")[5]) for line in lines]
    assert losses == sorted(losses)


def test_mistakes(runs: Path, run_cli: RunCli) -> None:
    done = run_cli("compare", "a", "nothing", "a/final", cwd=runs)
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: nothing: no run dir (it has no recipe.json)",
        "error: a/final: no run dir (it has no recipe.json)",
    ]
    done = run_cli("compare", "a", "b", "--by", "acuracy", cwd=runs)
    assert (done.code, "no run has this metric; there are: accuracy" in done.err) == (2, True)


def test_status_without_slurm(runs: Path, run_cli: RunCli) -> None:
    done = run_cli("status", "a", cwd=runs)
    assert done.out.splitlines() == ["a: finished", "saved step 12, 0 restarts"]
    done = run_cli("logs", "a", cwd=runs)
    assert "done: accuracy" in done.out
    done = run_cli("status", "nothing", cwd=runs)
    assert (done.code, done.err.startswith("error: nothing: neither a run dir nor a job")) == (2, True)
