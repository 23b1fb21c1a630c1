"""Clients that are gone are noticed, and slow ones are kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import rooms
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from support import (
    TIMEOUT,
    Journal,
    client,
    closed,
    connected,
    fronted,
    not_reading,
    processes,
    reading,
    received,
    relay_to,
    room,
    send_until_blocked,
    serving,
)

from wsrelay import Node, WebSocketRelay
from wsrelay.session.rfc6455 import PING

pytestmark = pytest.mark.anyio

MEGABYTE = 1_000_000


def masked(first: int, data: bytes) -> bytes:
    """A client's short frame, with a mask of zeros."""
    return bytes((first, 0x80 | len(data))) + bytes(4) + data


async def native_echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@pytest.mark.parametrize("is_native", [False, True])
async def test_a_client_that_pings_and_never_reads_is_not_read_either(
    node: Node, *, is_native: bool
) -> None:
    """Its pongs wait nowhere; once it reads it gets that of its newest ping, and is heard."""
    native = Starlette(routes=[WebSocketRoute("/", native_echo)])
    app = WebSocketRelay(native if is_native else relay_to(node.spawn(room(rooms.echo))), node=node)
    async with (
        fronted(app) as (server, url),
        client(url, sock=await connected(url)) as websocket,
    ):
        served: Any = next(iter(server.server_state.connections))
        theirs = served.transport if is_native else served._transport
        mine = websocket.transport
        not_reading(websocket)
        sent = 0
        while theirs.is_reading() and sent < 20 * MEGABYTE:
            if not mine.get_write_buffer_size():
                for _ in range(1000):
                    sent += 125
                    mine.write(masked(PING, f"{sent:0125}".encode()))
            await asyncio.sleep(0)
        assert sent < 20 * MEGABYTE
        assert theirs.get_write_buffer_size() < MEGABYTE
        newest = await websocket.ping("newest")
        reading(websocket)
        async with asyncio.timeout(TIMEOUT):
            await newest
        await websocket.send("still here")
        assert await received(websocket) == "still here"


async def test_a_client_that_answers_no_ping_is_closed(node: Node, journal: Journal) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(relay_to(pid), node=node)
    keepalive: dict[str, Any] = {"ws_ping_interval": 0.05, "ws_ping_timeout": 0.1}
    async with serving(app, **keepalive) as url, client(url) as websocket:
        await journal.line("ws.join")
        not_reading(websocket)
        leave = (await journal.line("ws.leave"))["payload"]
        assert (leave["code"], leave["reason"]) == (1011, "keepalive ping timeout")
        reading(websocket)
        assert await closed(websocket) == (1011, "keepalive ping timeout")


async def test_a_client_that_reads_slowly_but_reads_is_kept(node: Node) -> None:
    """Its pongs are late: each ping is behind megabytes that it has yet to take."""
    app = WebSocketRelay(
        relay_to(node.spawn(room(rooms.echo))), node=node, outbox_limit=100 * MEGABYTE
    )
    settings: dict[str, Any] = {"ws_ping_interval": 0.3, "ws_ping_timeout": 0.3}
    async with (
        serving(app, **settings) as url,
        client(url, sock=await connected(url)) as websocket,
    ):
        not_reading(websocket)
        [pid] = node.connections
        for _ in range(30):
            node.send(pid, "ws.send", {"type": "binary", "data": bytes(MEGABYTE // 10)})
        loop = asyncio.get_running_loop()
        ends = loop.time() + 1.5
        while loop.time() < ends:  # 20 KB at a time, five ping intervals long
            reading(websocket)
            await asyncio.sleep(0)
            not_reading(websocket)
            await asyncio.sleep(0.02)
        reading(websocket)
        for _ in range(30):
            assert len(await received(websocket)) == MEGABYTE // 10
        await websocket.send("still here")
        assert await received(websocket) == "still here"


async def test_a_healthy_client_outlives_any_computation_of_its_target(
    node: Node, tmp_path: Path
) -> None:
    """The pongs lie unread behind its messages, for many times the ping timeout."""
    go = tmp_path / "go"
    busy = node.spawn(room(rooms.read_on), None, str(go))
    keepalive: dict[str, Any] = {"ws_ping_interval": 0.1, "ws_ping_timeout": 0.1}
    async with (
        serving(WebSocketRelay(relay_to(busy), node=node), **keepalive) as url,
        client(url) as websocket,
        client(url) as silent,
    ):
        count = await send_until_blocked(websocket, bytes(100_000))
        assert len(node.connections) == 2
        await asyncio.to_thread(go.touch)
        for _ in range(count):
            assert len(await received(websocket)) == 100_000
        await silent.send("I was there all the time")
        assert await received(silent) == "I was there all the time"


async def test_two_hundred_clients_who_ask_for_a_room_at_once_meet_in_one_process() -> None:
    from wsrelay.gateway.script import Scope, ScriptOptions, script_app  # noqa: PLC0415

    async with Node(hosts=[processes()]) as node:
        app = script_app(node, ScriptOptions(target=room(rooms.record_pid), scope=Scope.ROOM))

        async def ask(url: str) -> str:
            async with client(f"{url}/ws/same") as websocket:
                return str(await received(websocket))

        async with serving(app, lifespan="off") as url:
            pids = await asyncio.gather(*(ask(url) for _ in range(200)))
    assert len(set(pids)) == 1


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
async def test_under_pause_what_the_node_sends_is_bounded_too(
    node: Node, journal: Journal, front_end: str
) -> None:
    """An HTTP handler cannot be made to wait: at twice the limit the client is too slow."""
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = WebSocketRelay(
        relay_to(pid), node=node, outbox_limit=MEGABYTE, outbox_overflow="pause", linger=0.2
    )
    async with (
        serving(app, front_end) as url,
        client(url, sock=await connected(url)) as websocket,
    ):
        join = await journal.line("ws.join")
        not_reading(websocket)
        relay: Any = node.connection(join["sender"])
        most = 0
        for _ in range(200):
            node.send(join["sender"], "ws.send", {"type": "text", "data": "x" * 100_000})
            most = max(most, relay._session.outbox.size)
            await asyncio.sleep(0)
        assert MEGABYTE < most <= 2 * MEGABYTE
        leave = await journal.line("ws.leave")
        assert (leave["payload"]["code"], leave["payload"]["reason"]) == (1013, "slow client")
        reading(websocket)
        await closed(websocket)
