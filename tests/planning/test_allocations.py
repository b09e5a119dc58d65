"""`plan --time`: the arithmetic by table, and a few real steps."""

from __future__ import annotations

import re

import pytest

from commands import ROOT, SUPPORT, RunCli
from launcher.errors import UserError
from launcher.planning.allocations import allocation_seconds
from launcher.planning.costs import Cost, PhaseCost

TINY = str(SUPPORT / "tiny.py")
ENVIRON = {"PYTHONPATH": f"{ROOT}:{SUPPORT}"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 300),
        ("5:30", 330),
        ("4:00:00", 14_400),
        ("1-2", 93_600),
        ("1-2:30", 95_400),
        ("1-02:30:15", 95_415),
        ("0-00:00:01", 1),
    ],
)
def test_times_as_slurm_writes_them(text: str, seconds: float) -> None:
    assert allocation_seconds(text) == seconds


@pytest.mark.parametrize("text", ["soon", "", "-5", "1:2:3:4", "4h", "1-", "1.5"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"write minutes, hours:minutes:seconds, or days-hours:minutes$"):
        allocation_seconds(text)


def cost(*phases: PhaseCost, start: float = 30, save: float = 10) -> Cost:
    return Cost(phases=phases, start=start, save=save)


def phase(steps: int, step: float, evaluations: int, evaluation: float) -> PhaseCost:
    return PhaseCost(name="any", steps=steps, step=step, evaluations=evaluations, evaluation=evaluation)


PROBE, FULL = phase(100, 1, 2, 50), phase(400, 2, 4, 50)
"""200 s and 1,000 s."""


@pytest.mark.parametrize(
    ("allocation", "count"),
    [
        # 1,200 s of work; an allocation loses 30 s at its start, and 2 + 2 x 10 + 5 s at its end.
        (1_257, 1),
        (1_256, 2),
        (657, 2),
        (656, 3),
        (177, 10),
        (107, 24),
    ],
)
def test_how_many_allocations(allocation: float, count: int) -> None:
    run = cost(PROBE, FULL)
    assert run.seconds == 1_200
    assert run.reserve == 27
    assert run.allocations(allocation) == count


def test_an_allocation_in_which_nothing_would_get_on() -> None:
    with pytest.raises(UserError, match=r"^--time: 1 min 46 s is too short to get on: .* take 2 min; give more"):
        cost(PROBE, FULL).allocations(106)
    with pytest.raises(UserError, match="take 5 min"):
        cost(phase(10, 120, 1, 10)).allocations(200)


def test_a_plan_measures_and_counts(run_cli: RunCli) -> None:
    done = run_cli("plan", f"{TINY}:resumable", "--time", "1:00:00", env=ENVIRON)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    shown = lines[lines.index("time") + 1 :]
    number = r"\d[\d.e-]* s"
    assert re.fullmatch(
        r"  measured here, on one process \(c\w+, \d data workers? per process\), a few steps of each phase:", shown[0]
    )
    assert re.fullmatch(f"    linear_probe: 6 steps x {number} \\+ 2 evaluations x {number} = {number}", shown[1])
    assert re.fullmatch(f"    full_finetune: 6 steps x {number} \\+ 2 evaluations x {number} = {number}", shown[2])
    assert re.fullmatch(
        f"  {number} in all; each allocation loses {number} to its start and {number} to the save before its end",
        shown[3],
    )
    assert shown[4] == "  not counted: exchange between processes, slower disks than here, and waiting in the queue"
    assert shown[5:] == ["  --time 1:00:00: 1 allocation of 1 h 0 min"]


def test_a_plan_counts_features_once(run_cli: RunCli) -> None:
    """Where they are stored: the frozen part is in the cost of the phase, and not in that of its steps."""
    done = run_cli("plan", f"{TINY}:recipe", "--time", "1:00:00", env=ENVIRON)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"\n    linear_probe: \d\S* s for features \+ 6 steps x ", done.out)
    assert re.search(r"\n    full_finetune: 6 steps x ", done.out)


def test_a_plan_with_a_time_that_cannot_be(run_cli: RunCli) -> None:
    done = run_cli("plan", TINY, "batch_size=33", "--processes", "2", "--time", "soon", env=ENVIRON)
    assert done.code == 2
    assert [line.split(":")[1].split()[0] for line in done.err.splitlines()] == ["batch_size=33", "--time"]
    done = run_cli("plan", TINY, "freeze_plan.0.patience=1", "--time", "0:01", env=ENVIRON)
    assert done.code == 2
    assert "  at most " in done.out
    assert done.err.startswith("error: --time: 1.0 s is too short to get on: ")
