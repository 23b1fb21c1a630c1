"""A node with a healthy room and one that a fault hits."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import rooms
from support import client, fronted, processes, received, relay_to, room, until
from websockets.asyncio.client import ClientConnection

from wsrelay import Node, WebSocketRelay, process, wire
from wsrelay.values import current
from wsrelay.values.pid import PID

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has that")


def victim() -> None:
    """Do to itself what its client says."""
    for message in process.inbox():
        if message.topic == "ws.message":
            suffer(message.payload["data"], message.sender)


def suffer(order: str, sender: PID) -> None:
    pipe = current.caller().pipe  # type: ignore[attr-defined]
    match order:
        case "spin":
            while True:
                pass
        case "half a frame":
            data = wire.pack(wire.RegisterFrame(1, "name", "{local@processes|1}"))
            pipe.ends.write_all(data[: len(data) // 2])
            os._exit(3)
        case "half a frame, killed":
            pipe.ends.write_all(wire.pack(wire.ReadyFrame())[:2])
            os.kill(os.getpid(), signal.SIGKILL)
        case "garbage":
            pipe.ends.write_all(os.urandom(100_000))
            time.sleep(60)
        case "forged":
            frames = (
                wire.AckFrame(1 << 40),
                wire.RelateFrame("monitor", "{"),
                wire.JoinGroupFrame("group", "name"),
                wire.RegisterFrame(1, "name", "{oops"),
                wire.DrainFrame(1, "{local"),
                wire.SpawnFrame("{local@processes|1}", "processes", "spam:eggs", b""),
                wire.SpawnFrame(process.pid(), "processes", "spam:eggs", b""),
                wire.DoneFrame(b"\xc0", None, 0, []),
            )
            number = int(process.inbox().receive().payload["data"])
            for _ in range(2):
                pipe.ends.write_all(wire.pack(frames[number]))
            time.sleep(60)
        case "huge length":
            pipe.ends.write_all(b"\xff" * 64)
            time.sleep(60)
        case "close the pipe":
            pipe.ends.close()
            time.sleep(60)
        case "exhaust":
            with contextlib.suppress(OSError):
                while True:
                    os.dup(1)
            answer = {"type": "text", "data": "none left"}
            process.send(sender, "ws.send", answer)
        case "spawn":
            process.spawn_monitored(victim)
            result = process.events().receive(10).result
            kind = result.error.kind if result and result.error else "none"
            process.send(sender, "ws.send", {"type": "text", "data": str(kind)})
        case "flood":
            while True:
                process.send("healthy", "flood", bytes(10_000))
        case _:
            process.send(sender, "ws.send", {"type": "text", "data": order})


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
async def staged(**options: Any) -> AsyncIterator[Scene]:
    async with Node(hosts=[processes(**options)]) as node:
        await node.loaded()
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
