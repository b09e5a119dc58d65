"""Several runs side by side."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
from commands import ROOT, TINY, RunCli
from launcher import optim, phases
from launcher.cli import main
from launcher.console import side_by_side
from launcher.recipe.serialization import to_json
from runs import train


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


def test_a_table_of_eighty_columns_shortens_nothing(runs: Path, run_cli: RunCli) -> None:
    plan = phases.linear_probe(epochs=20) + phases.full_finetune(epochs=5, backbone_lr_scale=0.03)
    named = {"a": "a", "b": "a-rather-long-name-of-a-run-with-another-plan", "third": "another-name-that-is-long"}
    for name, other in named.items():
        if not (runs / other).exists():
            shutil.copytree(runs / ("b" if name == "b" else "a"), runs / other)
    recipe = json.loads((runs / named["b"] / "recipe.json").read_text())
    recipe["freeze_plan"] = to_json(dataclasses.replace(tiny.recipe, freeze_plan=plan))["freeze_plan"]
    recipe["optim"]["type"] = "launcher.optim.AdamW"
    (runs / named["b"] / "recipe.json").write_text(json.dumps(recipe))
    lines = run_cli("compare", *named.values(), cwd=runs, env={"COLUMNS": "80"}).out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line != line.rstrip()] == []
    text = "\n".join(lines)
    for name in (*named.values(), "accuracy", "probe 20 + full 5 x0.03", "AdamW", "SGD"):
        assert name in text
    assert not re.search(r"type|launcher\.|\.name|\.rules|\.epochs|…", text)
    rows = [line.split() for line in run_cli("compare", "a", "b", cwd=runs).out.splitlines()]
    assert sorted(rows[0]) == ["a", "b"]
    assert [row[0] for row in rows[1:]] == ["accuracy", "macro_f1", "loss", "auroc", "optim.lr", "seed"]
    assert dict(zip(rows[0], rows[5][1:], strict=True)) == {"a": "0.1", "b": "0.3"}


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_no_cell_is_lost_whatever_the_width(width: int) -> None:
    rows = [["", *(f"run-{i}" for i in range(9))], ["lr", *(f"0.{i}" for i in range(9))]]
    lines = side_by_side(rows, width)
    cells = " ".join(lines).split()
    assert all(cells.count(cell) == 1 for row in rows for cell in row[1:])
    assert all(len(line) <= width for line in lines)


def test_mistakes(runs: Path, run_cli: RunCli) -> None:
    done = run_cli("compare", "a", "nothing", "a/final", cwd=runs)
    assert done.code == 2
    assert done.err.splitlines() == [
        "error: nothing: no run dir (it has no recipe.json)",
        "error: a/final: no run dir (it has no recipe.json)",
    ]
    done = run_cli("compare", "a", "b", "--by", "acuracy", cwd=runs)
    assert (done.code, "no run has this metric; there are: accuracy" in done.err) == (2, True)


OWNER = """
import sys, time
from pathlib import Path
from launcher.training.run_lock import RunLock

RunLock(Path(sys.argv[1])).acquire(print)
print(end=".", flush=True)
time.sleep(600)
"""


def test_the_lock_of_a_dead_run_is_no_running_run(tmp_path: Path, run_cli: RunCli) -> None:
    words = [sys.executable, "-c", OWNER, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}) as owner:
        assert owner.stdout
        owner.stdout.read(1)
        assert run_cli("status", str(tmp_path)).out.startswith(f"{tmp_path}: running (by its lock)")
        owner.kill()
    assert (tmp_path / "LOCK").exists()
    assert run_cli("status", str(tmp_path)).out.startswith(f"{tmp_path}: not finished")


def test_status_without_slurm(runs: Path, run_cli: RunCli) -> None:
    done = run_cli("status", "a", cwd=runs)
    assert done.out.splitlines() == ["a: finished", "step 12 of 12 saved, 0 restarts"]
    log = (runs / "a/log.txt").read_text()
    (begins,) = [line for line in log.splitlines() if " training and " in line]
    (runs / "a/log.txt").write_text(f"{log}{begins}\n{begins}\n")
    assert run_cli("status", "a", cwd=runs).out.splitlines()[1] == "step 12 of 12 saved, 2 restarts"
    done = run_cli("logs", "a", cwd=runs)
    assert "done: accuracy" in done.out
    done = run_cli("status", "nothing", cwd=runs)
    assert (done.code, done.err.startswith("error: nothing: neither a run dir nor a job")) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.json", "[]"),
        ("recipe.json", "[" * 100_000),
        ("recipe.json", json.dumps({"type": "launcher.Recipe", "batch_size": 10**400})),
        ("final/metrics.json", "[]"),
        ("final/metrics.json", '{"accuracy": "high"}'),
        ("final/classes.json", '["one"]'),
        ("final/preprocess.json", '{"image_size": -1, "resize_size": 16}'),
        ("evaluation.json", '{"intervals": 3, "calibration": "x", "classes": []}'),
        ("evaluation.json", '{"classes": {"zz": {}}}'),
        ("metrics.jsonl", '[]\nnull\n{"event": "epoch"}\n{"event": "step", "step": "x"}\n{"event": "ep'),
        ("environment.json", "null"),
        ("environment.json", '{"data": 3, "command": 3}'),
        ("plan.json", '{"phases": 7}'),
        ("STOPPED.json", "[]"),
        ("log.txt", "\x1b[2J"),
    ],
)
def test_records_of_other_shapes_are_reported_or_left_out(
    runs: Path, tmp_path: Path, name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No command ends in a traceback (it would be raised here), and none writes control characters to a terminal."""
    run_dir = tmp_path / "a"
    shutil.copytree(runs / "a", run_dir)
    (run_dir / name).write_text(content)
    for words in (
        ("compare", str(run_dir), str(runs / "b")),
        ("status", str(run_dir)),
        ("logs", str(run_dir)),
        ("report", str(run_dir), *TINY),
    ):
        code = main(words)
        reported = capsys.readouterr()
        assert code in (0, 2)
        assert (code == 2) == ("error: " in reported.err), reported.err
        assert "\x1b" not in reported.out + reported.err


def test_what_is_no_number_is_never_the_best(runs: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """And of equal values the one with the lower loss comes first, as among the epochs of a run."""
    values = {"na": (None, 1.0), "nb": (0.5, 2.0), "nc": (0.9, 1.0), "nd": (None, 0.5), "ne": (0.5, 0.1)}
    for name, (accuracy, loss) in values.items():
        shutil.copytree(runs / "a", tmp_path / name)
        metrics = {"accuracy": accuracy, "loss": loss}
        (tmp_path / name / "final/metrics.json").write_text(json.dumps(metrics))
    for order in (sorted(values), sorted(values, reverse=True)):
        rows = json.loads(run_cli("compare", *order, "--as", "json", cwd=tmp_path).out)
        assert [row["run"] for row in rows] == ["nc", "ne", "nb", "nd", "na"]
