"""Whether a job that has ended is to be started again: by what ended it, and by how far it came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.cluster.attempts import Verdict, job_name, record_failure, rows_of, verdict_of
from launcher.cluster.job import begin, end
from launcher.errors import UserError


def verdict(**changes: Any) -> Verdict:
    facts: dict[str, Any] = {"finished": False, "canceled": False, "stopped": None, "failures": [], "exit_code": 1}
    return verdict_of(**(facts | {"steps_of_attempts": [(0, 5)]} | changes))


RESET = {"kind": "crash", "why": "RuntimeError: ... Connection reset by peer ...", "process": "0"}
NAN = {"kind": "mistake", "why": "step 7: the gradient is not finite", "process": "0"}
MEMORY = {"kind": "out of memory", "why": "OutOfMemoryError: CUDA out of memory", "process": "3"}
BUG = {"kind": "crash", "why": "KeyError: 'label'", "process": "1"}


@pytest.mark.parametrize(
    ("changes", "cause", "again"),
    [
        ({"finished": True, "exit_code": 0}, "finished", False),
        ({"stopped": "preempted"}, "preempted", True),
        ({"stopped": "time limit"}, "time limit", True),
        ({"stopped": "time limit", "canceled": True}, "time limit", False),
        ({"stopped": "asked to stop"}, "asked to stop", False),
        ({"stopped": "interrupted"}, "interrupted", False),
        ({"failures": [NAN]}, "error", False),
        ({"failures": [RESET, BUG]}, "error", False),
        ({"failures": [RESET, MEMORY]}, "out of memory", False),
        ({"failures": [RESET]}, "lost", True),
        ({"failures": [], "exit_code": 137}, "lost", True),
        ({"failures": [], "steps_of_attempts": [(0, 5), (5, 5)]}, "lost", False),
        ({"failures": [], "canceled": True}, "lost", False),
        # Preempted again and again before anything new could be saved.
        ({"stopped": "preempted", "steps_of_attempts": [(0, 5), (5, 5), (5, 5)]}, "preempted", True),
        ({"stopped": "preempted", "steps_of_attempts": [(0, 5), (5, 5), (5, 5), (5, 5)]}, "preempted", False),
    ],
)
def test_causes(changes: dict[str, Any], cause: str, again: bool) -> None:
    found = verdict(**changes)
    assert (found.cause, found.retry) == (cause, again)
    assert found.why


def test_the_reason_is_that_of_the_culprit() -> None:
    assert verdict(failures=[RESET, BUG]).why == "KeyError: 'label'"


def test_a_task_of_an_array_names_itself() -> None:
    """The last task has the array's own job id: by it, Slurm would requeue them all."""
    environ = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}
    assert job_name(environ) == "9_3"
    assert job_name({"SLURM_JOB_ID": "9"}) == "9"
    assert job_name({}) is None


def test_two_lives(tmp_path: Path) -> None:
    first = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    second = first | {"SLURM_RESTART_COUNT": "1"}
    begin(tmp_path, first)
    (tmp_path / "checkpoints/step-000004").mkdir(parents=True)
    (tmp_path / "checkpoints/step-000004/MANIFEST.json").touch()
    assert end(tmp_path, 1, False, first).retry
    begin(tmp_path, second)
    record_failure(tmp_path, UserError("optim.lr: too large"), second)
    record_failure(tmp_path, UserError("optim.lr: too large"), second | {"RANK": "1"})
    found = end(tmp_path, 1, False, second)
    assert (found.cause, found.why, found.retry) == ("error", "optim.lr: too large", False)
    assert [row["event"] for row in rows_of(tmp_path)] == ["begin", "end", "begin", "failure", "end"]


def test_a_chain_ends_where_one_of_its_jobs_has_ended_for_good(tmp_path: Path) -> None:
    chain = {"LAUNCHER_CHAIN": "c"}
    begin(tmp_path, chain | {"SLURM_JOB_ID": "7"})
    record_failure(tmp_path, UserError("optim.lr: too large"), chain | {"SLURM_JOB_ID": "7"})
    end(tmp_path, 1, False, chain | {"SLURM_JOB_ID": "7"})
    with pytest.raises(UserError, match=r"the job before in this chain \(7\) ended for good: error: optim.lr"):
        begin(tmp_path, chain | {"SLURM_JOB_ID": "8"})
    begin(tmp_path, {"SLURM_JOB_ID": "9"})


def test_a_row_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    begin(tmp_path, {"SLURM_JOB_ID": "7"})
    with (tmp_path / "LIVES.jsonl").open("a") as file:
        file.write('{"event": "en')
    assert [row["event"] for row in rows_of(tmp_path)] == ["begin"]
