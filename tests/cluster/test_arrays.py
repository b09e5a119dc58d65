from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cluster.arrays import array_of, task, tasks_of
from launcher.errors import UserError


def test_a_grid() -> None:
    tasks = tasks_of(["r.py", "optim.lr=1,2", "seed=0", "data.root=a\\,b", "head.dropout=0,0.5", "--workers", "0"])
    assert len(tasks) == 4
    assert tasks[1] == ["r.py", "optim.lr=1", "seed=0", "data.root=a,b", "head.dropout=0.5", "--workers", "0"]


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "sweep.txt"
    file.write_text("optim.lr=1 seed=0  # the first\n\n# none\ndata.root='a b, c' seed=1\n")
    assert tasks_of(["r.py", f"@{file}", "--workers", "0"]) == [
        ["r.py", "optim.lr=1", "seed=0", "--workers", "0"],
        ["r.py", "data.root=a b, c", "seed=1", "--workers", "0"],
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot be read"),
        ("", "holds no overrides"),
        ("optim.lr=1 'seed=0", "No closing quotation"),
        ("optim.lr=1 --workers", "'--workers': only overrides"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str | None, problem: str) -> None:
    if text is not None:
        (tmp_path / "sweep.txt").write_text(text)
    with pytest.raises(UserError, match=problem):
        tasks_of(["r.py", f"@{tmp_path}/sweep.txt"])


def test_a_task_has_a_run_dir_of_its_own() -> None:
    words = ["r.py", f"seed={','.join(map(str, range(12)))}", "--run-dir", "runs/s"]
    assert task(words, 3, Path("runs/s")) == ["r.py", "seed=3", "--run-dir", "runs/s", "--run-dir", "runs/s/03"]
    with pytest.raises(UserError, match="task 12: the sweep has 12; submit it with --array=0-11"):
        task(words, 12, Path("runs/s"))


@pytest.mark.parametrize(
    ("text", "array"), [("all", "0-5"), ("%2", "0-5%2"), ("0-5%3", "0-5%3"), ("1,3", "1,3"), ("0-4:2", "0-4:2")]
)
def test_arrays(text: str, array: str) -> None:
    assert array_of(text, 6) == array


@pytest.mark.parametrize("text", ["0-6", "two", "%", ""])
def test_arrays_that_do_not_fit(text: str) -> None:
    with pytest.raises(UserError, match="--array"):
        array_of(text, 6)
