"""A job that is stopped, by whatever, continues by itself at the very step, or says why it does not."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from safetensors.torch import load_file

import slurm_stories
import tiny
from runs import train
from slurm_cluster import Cluster
from slurm_stories import Job

pytestmark = pytest.mark.timeout(1200)
"""Only against a hang: what a test waits for may have to wait for other jobs on the same cores."""


@pytest.fixture(scope="module")
def unbroken(stories: dict[str, Future[Job]], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Run dirs by the number of processes. The bits depend on the number of threads, too: two processes are compared
    with two processes on two nodes."""
    alone = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny.resumable, alone)
    job = stories["unbroken"].result()
    assert job.state["JobState"] == "COMPLETED", job.log
    return {1: alone, 2: job.run_dir}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("story", "processes", "causes"),
    [
        (slurm_stories.harmed_four_times, 2, ["time limit", "preempted", "preempted", "lost"]),
        (slurm_stories.warned_while_it_starts, 1, ["time limit"]),
        (slurm_stories.preempted_with_grace, 1, ["preempted"]),
        (slurm_stories.out_of_time, 1, None),
        (slurm_stories.daemon_killed, 2, None),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_it_continues_and_ends_like_the_unbroken_run(
    stories: dict[str, Future[Job]], unbroken: dict[int, Path], story: object, processes: int, causes: list[str] | None
) -> None:
    job = stories[story.__name__].result()  # type: ignore[attr-defined]
    assert job.state["JobState"] == "COMPLETED", job.log
    assert int(job.state["Restarts"]) >= 1
    ends = [row["cause"] for row in job.attempts if row["event"] == "end"]
    assert ends[-1] == "finished"
    if causes is not None:
        assert ends[:-1] == causes
    if story is slurm_stories.out_of_time:
        assert set(ends[:-1]) == {"time limit"}
    ours, theirs = (load_file(path / "final/model.safetensors") for path in (job.run_dir, unbroken[processes]))
    assert [name for name in theirs if ours[name].ne(theirs[name]).any()] == []
    assert (job.run_dir / "metrics.jsonl").read_bytes() == (unbroken[processes] / "metrics.jsonl").read_bytes()


def test_a_canceled_job_saves_and_stays_canceled(stories: dict[str, Future[Job]], slurm: Cluster) -> None:
    job = stories["canceled"].result()
    assert job.state["JobState"] == "CANCELLED"
    (end,) = [row for row in job.attempts if row["event"] == "end"]
    assert (end["cause"], end["again"]) == ("preempted", False)
    assert end["step"] >= 4
    assert slurm.processes("n12") + slurm.processes("n13") == []


def test_a_run_that_meets_nan_ends_with_its_reason(stories: dict[str, Future[Job]]) -> None:
    job = stories["not_a_number"].result()
    assert (job.state["JobState"], job.state["Restarts"]) == ("FAILED", "0")
    end = job.attempts[-1]
    assert (end["event"], end["cause"], end["again"]) == ("end", "error", False)
    assert "not finite" in end["why"]
    assert f"error: {end['why']}" in job.log
