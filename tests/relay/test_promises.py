"""What holds under which server: the table of docs/semantics.md, cell by cell.

The columns are our front end, uvicorn with our protocol, plain uvicorn, and hypercorn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import rooms
from support import (
    Journal,
    client,
    closed,
    connected,
    fronted,
    hypercorn_serving,
    not_reading,
    received,
    relay_to,
    room,
    send_until_blocked,
    serving,
    until,
)
from websockets.exceptions import ConnectionClosed

from wsrelay import PID, Node, WebSocketRelay

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["front end", "direct", "uvicorn", "hypercorn"])
def column(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def served(app: Any, column: str, *, impatient: bool = False) -> AsyncIterator[str]:
    """Serve the application; `impatient`: with pings that have to be answered at once."""
    seconds = 0.02
    match column:
        case "front end":
            options = {"ping_interval": seconds, "ping_timeout": seconds} if impatient else {}
            async with fronted(app, **options) as (_, url):
                yield url
        case "hypercorn":
            options = {"websocket_ping_interval": seconds} if impatient else {}
            async with hypercorn_serving(app, **options) as url:
                yield url
        case _:
            names = ("ws_ping_interval", "ws_ping_timeout")
            options = dict.fromkeys(names, seconds) if impatient else {}
            async with serving(app, column, **options) as url:
                yield url


async def test_the_client_s_own_close_code_reaches_the_target(
    node: Node, journal: Journal, column: str
) -> None:
    """Hypercorn reports 1006 for every client that goes."""
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with served(WebSocketRelay(relay_to(pid), node=node), column) as url:
        async with client(url) as websocket:
            await journal.line("ws.join")
            await websocket.close(4001, "bye")
        leave = (await journal.line("ws.leave"))["payload"]
    told = (leave["code"], leave["reason"])
    assert told == ((1006, "") if column == "hypercorn" else (4001, "bye"))


async def test_pongs_of_a_busy_target_s_clients(node: Node, tmp_path: Path, column: str) -> None:
    """uvicorn's own deadline counts while a pong lies unread; hypercorn has no deadline."""
    go = tmp_path / "go"
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.read_on), None, str(go))), node=node)
    async with served(app, column, impatient=True) as url, client(url) as websocket:
        try:
            count = await send_until_blocked(websocket, bytes(100_000))
        except ConnectionClosed:
            count = 0
        await asyncio.to_thread(go.touch)
        if column == "uvicorn":
            assert (await closed(websocket))[0] in (1006, 1011)
        else:
            assert count
            for _ in range(count):
                assert len(await received(websocket)) == 100_000


async def test_the_code_at_the_server_s_shutdown(node: Node, column: str) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with contextlib.AsyncExitStack() as stack:
        async with served(app, column) as url:
            websocket = await stack.enter_async_context(client(url))
            await websocket.send("hello")
            assert await received(websocket) == "hello"
        code, _ = await closed(websocket)
    assert code in ({1001, 1011} if column == "hypercorn" else {1012})
    await until(lambda: not node.connections, "the connection has ended")


async def test_a_client_that_never_reads(node: Node, journal: Journal, column: str) -> None:
    """Its process is done with it at once; plain uvicorn keeps the socket until the client goes."""
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node, outbox_limit=1_000_000, linger=0.2)
    async with served(app, column) as url:
        sock = await connected(url)
        async with client(url, sock=sock) as websocket:
            me = (await journal.line("ws.join"))["sender"]
            not_reading(websocket)
            [end] = sockets_to(url)
            for _ in range(60):
                node.send(me, "ws.send", {"type": "binary", "data": bytes(100_000)})
            leave = (await journal.line("ws.leave"))["payload"]
            assert (leave["code"], leave["reason"]) == (1013, "slow client")
            await until(lambda: PID(me) not in node.connections, "the connection has ended")
            if column == "uvicorn":
                assert end in sockets_to(url)
            else:
                await until(lambda: end not in sockets_to(url), "the socket was dropped")
            websocket.transport.abort()
        await until(lambda: end not in sockets_to(url), "the socket is gone with its client")


def sockets_to(url: str) -> list[tuple[Any, Any]]:
    """The server's ends of connections, by their addresses."""
    port = int(url.rpartition(":")[2])
    ends = psutil.Process().net_connections("tcp")
    return [(end.laddr, end.raddr) for end in ends if end.raddr and end.laddr.port == port]
