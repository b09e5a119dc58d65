"""A server, a machine that reaches it, and one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from machines import Machine, publish
from weight_server import Server, served


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the server has, see `publish`."""
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("published")
    publish(folder)
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[Server]:
    with served(published) as server:
        yield server


@pytest.fixture
def login(tmp_path: Path, server: Server, published: Path) -> Machine:
    """With network."""
    return Machine(tmp_path / "login", server, published)


@pytest.fixture
def node(tmp_path: Path, server: Server, published: Path) -> Machine:
    """Without network, and without anything that the other machine has in its home."""
    return Machine(tmp_path / "node", server, published, network=False)
