"""A gigabyte that nobody reads does not fill the node."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from soaking.node import Node
from support import client, received
from websockets.asyncio.client import ClientConnection

pytestmark = pytest.mark.anyio

MB = 1024 * 1024
ALLOWANCE = 32 * MB
"""Two messages of the largest size, in and out: what the node may hold whatever happens."""


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with Node(tmp_path / "site", PING="1h") as node:
        # Once through everything, so that what is loaded late is there before anything is measured.
        async with client(f"{node.url}/drop/feed/warm") as warm:
            await warm.send("10")
            await received(warm)
        yield node


class Watch:
    """The most memory that the node had while it was watched, beyond what it had before."""

    def __init__(self, node: Node, before: int) -> None:
        self._node = node
        self._before = before
        self.grown = 0

    async def watch(self) -> None:
        while True:
            if (sample := await self._node.sample()) is not None:
                self.grown = max(self.grown, sample.rss - self._before)
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def watched(node: Node) -> AsyncIterator[Watch]:
    sample = await node.sample()
    assert sample is not None
    watch = Watch(node, sample.rss)
    task = asyncio.create_task(watch.watch())
    try:
        yield watch
    finally:
        task.cancel()
    print(f"the node grew by {watch.grown / MB:.1f} MB")  # noqa: T201 - for the documentation


@contextlib.asynccontextmanager
async def unread(url: str) -> AsyncIterator[ClientConnection]:
    """A client that reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    sock.setblocking(False)
    host, port = url.removeprefix("ws://").partition("/")[0].split(":")
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    async with client(url, sock=sock) as websocket:
        websocket.transport.pause_reading()
        yield websocket
        websocket.transport.abort()


@pytest.mark.parametrize("policy", ["drop", "close"])
async def test_a_gigabyte_for_a_client_that_never_reads(node: Node, policy: str) -> None:
    async with (
        watched(node) as watch,
        unread(f"{node.url}/{policy}/feed/room") as websocket,
        client(f"{node.url}/{policy}/feed/room") as other,
    ):
        await websocket.send("1000000")
        while not await _computing(node):  # noqa: ASYNC110 - another process is looked at
            await asyncio.sleep(0.01)
        await other.send("10")  # its turn comes when the gigabyte has been sent
        async with asyncio.timeout(120):
            await other.recv()
        info = await node.info()
        assert info is not None
        dropped = [one.dropped for one in info.connections if one.dropped]
        if policy == "drop":
            assert dropped
            assert dropped[0] > 90_000, "of a hundred thousand messages"
        else:
            async with asyncio.timeout(20):  # it is given up at the end of the linger
                while await _count(node) > 1:  # noqa: ASYNC110 - another process is looked at
                    await asyncio.sleep(0.01)
    assert watch.grown < ALLOWANCE


async def _count(node: Node) -> int:
    info = await node.info()
    assert info is not None
    return len(info.connections)


async def _computing(node: Node) -> bool:
    """Whether the room has begun: something waits for the client that does not read."""
    info = await node.info()
    return info is not None and any(one.outbox or one.messages for one in info.connections)


async def test_a_gigabyte_for_a_handler_that_never_reads(node: Node) -> None:
    async with (
        watched(node) as watch,
        client(f"{node.url}/close/busy/room", write_limit=32 * 1024) as websocket,
    ):
        await websocket.send("600")
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 1000 * MB:
                async with asyncio.timeout(2):
                    await websocket.send(bytes(MB))
                sent += MB
        assert sent < 100 * MB, "the rest waits at the client"
        websocket.transport.abort()
    assert watch.grown < ALLOWANCE
