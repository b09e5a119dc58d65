from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from slurm_cluster import Cluster, cluster
from slurm_stories import STORIES, Job


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    with cluster("--nodes", "16", "--cpus", "4") as running:
        yield running


@pytest.fixture(scope="session")
def stories(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Job]]]:
    """All stories, three at a time and beside the other tests: most of their time they wait."""
    folder = tmp_path_factory.mktemp("stories")

    def live(story: object) -> Job:
        job = story(slurm, folder / story.__name__)  # type: ignore[operator, attr-defined]
        if not hasattr(job, "state"):
            job.state = job.end()
        return job

    with ThreadPoolExecutor(3) as pool:
        try:
            yield {story.__name__: pool.submit(live, story) for story in STORIES}
        finally:
            pool.shutdown(cancel_futures=True)
