"""Fixtures: nodes of one cluster in the tests' event loop that all tests of a module share.

A module that uses them has `pytest_plugins = ["sharing"]`. `CLUSTER` of that module makes `nodes`,
as `functools.partial(pair.cluster, ...)` does; `cluster` needs nothing, and shares names as well.
After each test nothing is left of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from circles import Shared, circle
from guests import nobody_is_left
from pair import Cluster
from support import Journal

from wsrelay import Node


@pytest.fixture(scope="module")
async def shared_nodes(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with request.module.CLUSTER() as made:
        yield made


@pytest.fixture
async def nodes(shared_nodes: Cluster) -> AsyncIterator[Cluster]:
    """A test may lose nodes, and stop the ways between them."""
    yield shared_nodes
    for node in shared_nodes.nodes.values():
        node.terminate_all()
    for way in shared_nodes.ways.values():
        way.go()
    for name in shared_nodes.nodes:
        others = [shared_nodes.exchange(other) for other in shared_nodes.nodes if other != name]
        if any(name not in exchange.neighbours for exchange in others):
            shared_nodes.lose(name)
            shared_nodes.meet_again(name)
    await nobody_is_left(shared_nodes)


@pytest.fixture
def a(nodes: Cluster) -> Node:
    return nodes["a"]


@pytest.fixture
def b(nodes: Cluster) -> Node:
    return nodes["b"]


@pytest.fixture
def journals(tmp_path: Path) -> dict[str, Journal]:
    """One for each node."""
    return {name: Journal(tmp_path / name) for name in "abc"}


@pytest.fixture(scope="module")
async def shared_circle() -> AsyncIterator[Shared]:
    # The first stream of uvloop opens a descriptor that the loop keeps: here, and not in a test.
    (await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)).close()
    async with circle("ann", "ben", "cyd") as cluster:
        for node in cluster.nodes.values():
            await node.loaded()
        yield cluster


@pytest.fixture
async def cluster(shared_circle: Shared) -> AsyncIterator[Shared]:
    yield shared_circle
    await shared_circle.end_all()
