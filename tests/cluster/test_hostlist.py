from __future__ import annotations

import pytest

from launcher.cluster.hostlist import expand_hostlist, tasks_of_nodes
from launcher.errors import UserError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[1-2,7],gpu01", ["n1", "n2", "n7", "gpu01"]),
        ("a[08-10]", ["a08", "a09", "a10"]),
        ("r[1-2]n[5,7]-ib", ["r1n5-ib", "r1n7-ib", "r2n5-ib", "r2n7-ib"]),
    ],
)
def test_host_lists(text: str, names: list[str]) -> None:
    assert expand_hostlist(text) == names


@pytest.mark.parametrize("text", ["", "n[1-", "n[a-b]", "n1]"])
def test_no_host_list(text: str) -> None:
    with pytest.raises(UserError, match="host list"):
        expand_hostlist(text)


def test_tasks_of_nodes() -> None:
    assert tasks_of_nodes("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(UserError, match="SLURM_TASKS_PER_NODE=two"):
        tasks_of_nodes("two")
