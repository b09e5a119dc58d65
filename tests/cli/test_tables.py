"""Tables on the screen: a row is a line, names stay whole, and no line ends in blanks, on 80 columns and in a pipe."""

from __future__ import annotations

import io
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from commands import RunCli
from launcher.inference.evaluation import Evaluation
from launcher.inference.evaluation_summary import show as show_evaluation
from launcher.inference.loaded_model import LoadedModel
from launcher.inference.prediction_table import TableRows
from launcher.verify import rehearse, verify

LONG = f"backbone.{'layer4.' * 20}[bold]weight :smile:"
"""A name longer than a line, that rich would break or take for markup and an emoji."""


def lines_of(printed: Callable[[Console], object], *, on_terminal: bool) -> list[str]:
    console = Console(file=io.StringIO(), width=80, force_terminal=on_terminal, color_system=None, highlight=False)
    printed(console)
    return cast(io.StringIO, console.file).getvalue().splitlines()


def checks(console: Console) -> object:
    found = [verify.Check("parity: 2 processes", False, f"largest difference 1e-3 in {LONG}")]
    return verify.show([*found, verify.Check("every sample once an epoch", True, "")], console)


def acts(console: Console) -> object:
    return rehearse.show([verify.Check("ends like the unbroken run", False, f"{LONG} differs by 1e-3")], console)


def evaluation(console: Console) -> None:
    scores = {"precision": 0.5, "recall": None, "f1": 0.25, "support": 1200}
    of_a_run: Any = types.SimpleNamespace(
        subject=types.SimpleNamespace(data=None, split_name="val"),
        metrics={"accuracy": 0.5, f"{LONG} error": 0.1},
        intervals={},
        details={"classes": {LONG: scores, "cat": scores}},
        file=Path("runs/pets/evaluation.json"),
        samples_file=Path("runs/pets/evaluation.parquet"),
        unlike_training=dict,
    )
    show_evaluation(cast(Evaluation, of_a_run), console)


def predictions(console: Console) -> None:
    model: Any = types.SimpleNamespace(kind="classification", classes=[LONG, "cat"], std=None)
    rows = TableRows(cast(LoadedModel, model), 2, console)
    rows.add([f"photos/{LONG}.png", "photos/a.png"], torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    rows.close()


@pytest.mark.parametrize("on_terminal", [True, False], ids=["terminal", "pipe"])
@pytest.mark.parametrize(("printed", "rows"), [(checks, 3), (acts, 2), (evaluation, 7), (predictions, 3)])
def test_a_row_is_a_line(printed: Callable[[Console], object], rows: int, on_terminal: bool) -> None:
    lines = lines_of(printed, on_terminal=on_terminal)
    assert len(lines) == rows, lines
    assert any(LONG in line for line in lines)
    assert [line for line in lines if line != line.rstrip()] == []


def test_stored_features_and_the_lives_of_a_run(tmp_path: Path, run_cli: RunCli) -> None:
    folder = tmp_path / "cache" / "features" / "0"
    folder.mkdir(parents=True)
    (folder / "about.json").write_text(json.dumps({"images": 1000, "row_bytes": 8, "backbone": LONG}))
    done = run_cli("cache", env={"LAUNCHER_CACHE": str(tmp_path / "cache"), "COLUMNS": "80"})
    header, row, _ = done.out.splitlines()
    assert row.endswith(f"1,000  {LONG}")
    assert header == header.rstrip()

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    life = {
        "time": "2026-01-01 10:00:00",
        "job": 7,
        "event": "end",
        "cause": "error",
        "life": 1,
        "step": 3,
        "why": LONG,
    }
    (run_dir / "LIVES.jsonl").write_text(json.dumps(life) + "\n")
    done = run_cli("status", str(run_dir), env={"COLUMNS": "80"})
    header, row = done.out.splitlines()[-2:]
    assert header.split() == ["time", "job", "start", "what", "step", "why"]
    assert row.endswith(f"3     {LONG}")
