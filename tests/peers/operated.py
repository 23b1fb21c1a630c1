"""Fixtures: two nodes over a real NATS whose operator uses the commands of `operating`.

A module that uses them has `pytest_plugins = ["operated"]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats_servers import NatsServer
from operating import ENTRIES
from peers_over_nats import clustered

from wsrelay import Node


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the nodes of the test have their control sockets."""
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
async def two(nats: NatsServer, directory: Path) -> AsyncIterator[list[Node]]:
    """Two nodes, of which `a` is asked."""
    del directory
    async with clustered(nats, ENTRIES, "a", "b") as nodes:
        yield nodes
