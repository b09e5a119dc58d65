"""The same command with a change keeps all that makes the run what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer.main

from launcher.cli.app import app
from launcher.cluster.parent import Parent, starter_of
from launcher.training.command import VALUED, Command


@pytest.mark.parametrize(
    ("words", "overrides", "expected"),
    [
        ("r.py", {}, "r.py"),
        ("r.py --run-dir old", {"a.b": 2}, "r.py a.b=2"),
        ("r.py:lion optim.lr=5e-4 data.root=other", {"a.b": 2}, "r.py:lion optim.lr=5e-4 data.root=other a.b=2"),
        ("r.py a.b=1 optim.lr=1 --workers 0", {"a.b": 2}, "r.py optim.lr=1 a.b=2 --workers 0"),
        ("--workers 0 r.py --run-dir=old --resume must", {"a.b": 2}, "--workers 0 r.py a.b=2"),
        ("--assets=in/here r.py --no-report --stop-at +2h", {}, "--assets=in/here r.py --no-report"),
        ("train r.py --stop-at=18:30 --micro-batch auto", {"a.b": 2}, "train r.py a.b=2 --micro-batch auto"),
        ("r.py --prepared copy 'data.root=with space'", {}, "r.py --prepared copy 'data.root=with space'"),
    ],
)
def test_another_run(words: str, overrides: dict[str, object], expected: str) -> None:
    import shlex

    changed = Command(tuple(shlex.split(words))).into(Path("runs/new one"), overrides)
    assert str(changed) == f"python -m launcher {expected} --run-dir 'runs/new one'"


def test_all_options_of_train_that_take_a_value_are_known() -> None:
    # typer may carry a click of its own: by what its options can tell, not by their class.
    commands: Any = typer.main.get_command(app)
    options = [one for one in commands.commands["train"].params if hasattr(one, "is_flag")]
    assert {name for one in options if not one.is_flag for name in one.opts} == VALUED


@pytest.mark.parametrize(
    ("parent", "machines", "starter"),
    [
        ("/bin/bash -l", 1, "python -m launcher"),
        ("/v/bin/python /v/bin/accelerate launch -m launcher r.py", 1, "accelerate launch -m launcher"),
        (
            "/v/bin/python /v/bin/accelerate launch --multi_gpu --num_processes 2 -m launcher r.py a=1",
            1,
            "accelerate launch --multi_gpu --num_processes 2 -m launcher",
        ),
        (
            "/v/bin/python /v/bin/torchrun --standalone --nproc_per_node 2 -m launcher r.py",
            1,
            "torchrun --standalone --nproc_per_node 2 -m launcher",
        ),
        (
            "/v/bin/python /v/bin/accelerate launch --machine_rank 1 --main_process_ip n1 -m launcher r.py",
            2,
            "accelerate launch -m launcher",
        ),
        (
            "/v/bin/python -m torch.distributed.run --nproc_per_node 2 -m launcher r.py",
            1,
            "python -m torch.distributed.run --nproc_per_node 2 -m launcher",
        ),
    ],
)
def test_what_started_it(parent: str, machines: int, starter: str) -> None:
    found = " ".join(starter_of(Parent(tuple(parent.split())), machines))
    assert found == starter
