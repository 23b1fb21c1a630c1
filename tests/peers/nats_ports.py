"""The ports of a cluster over a test's NATS, opened and closed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any, Final

from nats_servers import NatsServer
from support import TIMEOUT

from wsrelay.peers.nats import NatsBus, NatsStore
from wsrelay.peers.options import Cluster

__all__ = ["Inbox", "a_bus", "a_store", "cluster_of"]

_numbers: Final = itertools.count(1)


def cluster_of(server: NatsServer | str, **options: Any) -> Cluster:
    """A cluster of a name of its own, unless one is given, for a node on this server."""
    url = server if isinstance(server, str) else server.url
    return Cluster([url], **{"name": f"test-{next(_numbers)}", "node": "node-1", **options})


@contextlib.asynccontextmanager
async def a_bus(cluster: Cluster) -> AsyncIterator[NatsBus]:
    bus = NatsBus(cluster)
    try:
        await bus.open()
        yield bus
    finally:
        await bus.aclose()


@contextlib.asynccontextmanager
async def a_store(cluster: Cluster, **options: Any) -> AsyncIterator[NatsStore]:
    store = NatsStore(cluster, **options)
    try:
        await store.open()
        yield store
    finally:
        await store.aclose()


class Inbox:
    """What a subscription has brought."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    def __call__(self, subject: str, data: bytes) -> None:
        self._queue.put_nowait((subject, data))

    async def next(self) -> tuple[str, bytes]:
        async with asyncio.timeout(TIMEOUT):
            return await self._queue.get()

    async def data(self) -> bytes:
        return (await self.next())[1]
