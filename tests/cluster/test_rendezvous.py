"""Processes that wait for others say so, and do not wait for ever."""

from __future__ import annotations

import concurrent.futures
import socket

import pytest

from launcher.cluster import rendezvous
from launcher.cluster.rendezvous import meet
from launcher.errors import UserError
from launcher.training.launch import World


@pytest.fixture
def address() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "LAUNCHER_WAIT_SECONDS": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "state"), [(0, "1 of 2 has come"), (1, "process 0 has not come")])
def test_a_lone_process_of_two_says_what_it_waits_for_and_ends(
    address: dict[str, str], monkeypatch: pytest.MonkeyPatch, rank: int, state: str
) -> None:
    monkeypatch.setattr(rendezvous, "SILENT_SECONDS", 0.2)
    said: list[str] = []
    place = f"127.0.0.1:{address['MASTER_PORT']}"
    with pytest.raises(
        UserError, match=f"^waited 2 s for the 2 processes of this run at {place}: {state}; look at the"
    ):
        meet(World(process_index=rank, num_processes=2), said.append, address)
    assert said == [f"waiting for the 2 processes of this run at {place}: {state}"]


def test_processes_that_all_come_go_on_without_a_word(address: dict[str, str]) -> None:
    said: list[str] = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        worlds = [World(process_index=rank, num_processes=2) for rank in range(2)]
        stores = list(pool.map(lambda world: meet(world, said.append, address), worlds))
    assert all(store is not None for store in stores)
    assert said == []


def test_a_lone_process_and_those_of_torchrun_do_not_wait() -> None:
    assert meet(World(), pytest.fail, {}) is None
    assert meet(World(num_processes=2), pytest.fail, {"TORCHELASTIC_RUN_ID": "1"}) is None
