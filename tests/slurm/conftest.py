from __future__ import annotations

from collections.abc import Iterator

import pytest
from cluster import Cluster, cluster


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    with cluster("--nodes", "16", "--cpus", "4") as running:
        yield running
