"""A node with a healthy room and one that a fault hits."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import rooms
from one_node import left_as_found
from suffering import victim
from support import client, fronted, processes, received, relay_to, room, until
from websockets.asyncio.client import ClientConnection

from wsrelay import Node, WebSocketRelay
from wsrelay.values.pid import PID

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has that")


class Scene:
    """A node, its healthy room with a client, and the fault's room with another."""

    def __init__(
        self,
        node: Node,
        url: str,
        healthy: ClientConnection,
        hit: ClientConnection,
        pid: PID,
        connection: PID,
    ) -> None:
        self.node = node
        self.url = url
        self.healthy = healthy
        self.hit = hit
        self.pid = pid
        """The process that is hit."""
        self.connection = connection
        """Its client."""

    def os_pid(self) -> int:
        os_pid = self.node.workers[self.pid]
        assert os_pid is not None
        return os_pid

    async def is_well(self) -> None:
        """The healthy room answers, and new rooms come to life."""
        await self.healthy.send("well?")
        assert await received(self.healthy) == "well?"
        fresh = self.node.spawn(room(rooms.echo))
        assert await self.node.started(fresh) is None
        self.node.terminate(fresh)

    async def is_over(self) -> None:
        """Nothing is left of what the fault hit."""
        await until(lambda: self.pid not in self.node.workers, "the process is gone")
        await until(lambda: len(self.node.connections) == 1, "its connection is gone")
        assert len(self.node.kernel.names) == 1
        assert self.node.engine.processes[self.node.lookup("healthy")].pipe.backlog == 0


@contextlib.asynccontextmanager
async def staged(shared: Node | None = None, **options: Any) -> AsyncIterator[Scene]:
    """On the shared node, or on one of its own with these options of its host."""
    async with contextlib.AsyncExitStack() as stack:
        if shared is None:
            node = await stack.enter_async_context(Node(hosts=[processes(**options)]))
            await node.loaded()
        else:
            node = shared
            await stack.enter_async_context(left_as_found(shared))
        healthy, hit = node.spawn(room(rooms.echo)), node.spawn(victim)
        node.register("healthy", healthy)
        app = switch(node, healthy, hit)
        async with (
            fronted(app, ping_interval=0.5, ping_timeout=0.5) as (_, url),
            client(f"{url}/healthy") as one,
        ):
            [first] = node.connections
            async with client(f"{url}/hit") as other:
                [second] = node.connections - {first}
                yield Scene(node, url, one, other, hit, second)


def switch(node: Node, healthy: PID, hit: PID) -> Any:
    one, other = (WebSocketRelay(relay_to(pid), node=node) for pid in (healthy, hit))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (other if scope["path"] == "/hit" else one)(scope, receive, send)

    return app
