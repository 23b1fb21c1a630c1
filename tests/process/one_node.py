"""One node for all tests of a file, and connections of it."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import relating
import rooms
from exits import Exits
from starlette.requests import Request
from support import client, endpoint, processes, received, room, serving, until
from websockets.asyncio.client import ClientConnection

from wsrelay import PID, HostOptions, Node, RelayResponse, WebSocketRelay

BOTH = pytest.mark.parametrize(
    "face", [operator.attrgetter("sync"), operator.attrgetter("aio")], ids=["", "aio_"]
)
NO_FUNCTION = f"{relating.__file__}:no_such_function"
NOBODY = ["{processes|none}", "{local@processes|none}", "{other@processes|1}", "{gateway|none}"]


@contextlib.asynccontextmanager
async def running_node(*hosts: HostOptions, **options: Any) -> AsyncIterator[Node]:
    """A node that has loaded everything, for all tests of a file."""
    # The first stream of uvloop opens a descriptor that the loop keeps: here, and not in a test.
    (await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)).close()
    async with Node(hosts=hosts, **options) as node:
        await node.loaded()
        yield node


@contextlib.asynccontextmanager
async def one_node() -> AsyncIterator[Node]:
    """A node with four hosts, one of which is full."""
    targets = (room(rooms.echo), f"{relating.__file__}:mortal")
    hosts = [
        processes(targets=targets, stop_timeout=30.0),
        processes(targets=targets, name="hasty", stop_timeout=0.05),
        processes(targets=targets, name="small", mailbox=100_000),
        processes(targets=targets, name="full"),
    ]
    async with running_node(*hosts) as node:
        node.kernel.set_hosts(
            {host.name: host.max_processes * (host.name != "full") for host in hosts}
        )
        yield node


@contextlib.asynccontextmanager
async def front_of(shared: Node) -> AsyncIterator[str]:
    """A server that relays to the target that the query names."""

    def answer(request: Request) -> RelayResponse:
        return RelayResponse(request.query_params["target"])

    app = WebSocketRelay(endpoint(answer), node=shared, outbox_limit=64_000_000)
    async with serving(app) as url:
        yield url


@contextlib.asynccontextmanager
async def left_as_found(shared: Node) -> AsyncIterator[None]:
    """A test that begins and ends without processes and observers of its own."""
    sockets = open_sockets()
    observers = [*shared.engine.on_exit]
    yield
    shared.terminate_all()
    await until(lambda: not shared.workers and not shared.connections, "all are gone")
    await until(lambda: open_sockets() <= sockets, "their sockets are closed")
    shared.engine.on_exit[:] = observers
    assert not shared.kernel.processes
    assert not shared.kernel.relations
    assert not shared.kernel.names
    assert not shared.kernel.groups
    assert not shared.kernel.groups._watchers
    assert not shared.starts.execs
    assert not shared._calls


def open_sockets() -> int:
    if sys.platform != "linux":
        return 0
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(entry.readlink()).startswith("socket:")
    return count


async def seen_by(node: Node, function: Callable[..., Any], *args: Any) -> Any:
    """Run a handler and give what it returns; fails where it ends with an error."""
    result = await Exits(node).of(node.spawn(function, None, *args))
    assert result.error is None, result.error.traceback or result.error
    return result.value


@contextlib.asynccontextmanager
async def connection(
    node: Node, front: str, target: str | None = None
) -> AsyncIterator[tuple[ClientConnection, PID]]:
    """A client, and the PID of its connection; the target echoes."""
    target = target or node.spawn(room(rooms.echo))
    before = node.connections
    async with client(f"{front}/?target={quote(target)}", max_size=None) as websocket:
        await websocket.send("hello")
        assert await received(websocket) == "hello"
        (pid,) = node.connections - before
        yield websocket, pid


def starts(told: list[str], *expected: str) -> None:
    """Each text begins as expected."""
    assert len(told) == len(expected), told
    for text, start in zip(told, expected, strict=True):
        assert text.startswith(start), (text, start)
