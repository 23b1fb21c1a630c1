"""What clients begin and do not finish: each has its time, and all of them together a bound."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import rooms
from one_node import left_as_found
from support import client, closed, fronted, received, relay_to, room, serving, until
from unfinished_clients import MEGABYTE, OPENED, UPGRADE, http_socket, kept
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from wsrelay import Node, WebSocketRelay
from wsrelay.gateway.server import Server
from wsrelay.session.rfc6455 import BINARY
from wsrelay.values.bounds import InvalidOptions

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared
        while OPENED:
            OPENED.pop().close()


NO_MASK = bytes(4)


def head(size: int, first: int = BINARY) -> bytes:
    """The header of a client's frame."""
    if size < 126:
        return bytes((first, 0x80 | size)) + NO_MASK
    if size < 2**16:
        return bytes((first, 0xFE)) + size.to_bytes(2, "big") + NO_MASK
    return bytes((first, 0xFF)) + size.to_bytes(8, "big") + NO_MASK


BEGUN = 0x02
"""The first byte of the first of several frames."""
GOES_ON = 0x00


def put(websocket: ClientConnection, data: bytes) -> None:
    """Send bytes behind the library's back."""
    websocket.transport.write(data)


@contextlib.asynccontextmanager
async def relaying(node: Node, **options: Any) -> AsyncIterator[tuple[Server, str]]:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with fronted(app, **options) as (server, url):
        yield server, url


# A message's rest


@pytest.mark.parametrize(
    "begun",
    [
        head(1000)[:1],
        head(1000)[:3],
        head(1000) + b"x",
        head(200_000) + bytes(150_000),
        head(10, BEGUN) + bytes(10),
        head(10, BEGUN) + bytes(10) + head(10, GOES_ON) + bytes(3),
        head(0, BEGUN),
    ],
    ids=["a byte", "half a header", "a little", "much", "a fragment", "one and a half", "empty"],
)
async def test_a_message_that_is_not_finished_in_time_closes_with_1008(
    node: Node, begun: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with relaying(node, message_timeout=0.2) as (server, url), client(url) as websocket:
        await websocket.send("whole")
        assert await received(websocket) == "whole"
        put(websocket, begun)
        assert await closed(websocket) == (1008, "message not finished in time")
        await until(lambda: not kept(server), "nothing is kept of it")
    assert "timeouts.message" in caplog.text
    assert "127.0.0.1" in caplog.text


async def test_bytes_now_and_then_do_not_put_a_message_s_end_off(node: Node) -> None:
    async with relaying(node, message_timeout=0.3) as (_, url), client(url) as websocket:
        put(websocket, head(100_000))

        async def drip() -> None:
            while True:
                put(websocket, b"x")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        assert (await closed(websocket))[0] == 1008
        dripping.cancel()


async def test_each_message_has_its_own_time(node: Node) -> None:
    """The rest of one and the beginning of the next come together, for longer than the timeout."""
    async with relaying(node, message_timeout=0.5) as (_, url), client(url) as websocket:
        whole = head(10) + bytes(10)
        put(websocket, whole[:5])
        for _ in range(15):
            await asyncio.sleep(0.05)
            put(websocket, whole[5:] + whole[:5])
            assert await received(websocket) == bytes(10)


async def test_without_a_timeout_a_message_takes_any_time(node: Node) -> None:
    async with relaying(node, message_timeout=0) as (server, url), client(url) as websocket:
        put(websocket, head(10) + bytes(9))
        await until(lambda: kept(server) == 15)
        (direct,) = server.server_state.connections
        assert direct._deadline is None  # type: ignore[union-attr]
        put(websocket, bytes(1))
        assert await received(websocket) == bytes(10)


async def test_nothing_is_due_while_the_target_is_busy(node: Node, tmp_path: Path) -> None:
    go, timeout = tmp_path / "go", 0.2
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.read_on), None, str(go))), node=node)
    async with (
        fronted(app, message_timeout=timeout) as (server, url),
        client(url) as websocket,
    ):
        whole = head(100_000) + bytes(100_000)
        put(websocket, 5 * whole + whole[:-1])
        (direct,) = await until(lambda: list(server.server_state.connections))
        await until(lambda: direct._held and direct.unfinished)
        await asyncio.sleep(3 * timeout)  # it would have been closed
        go.touch()
        for _ in range(5):
            assert len(await received(websocket)) == 100_000
        put(websocket, whole[-1:])
        assert len(await received(websocket)) == 100_000


@pytest.mark.parametrize("seconds", [0, 120])
async def test_a_slow_frame_is_no_missing_pong(node: Node, seconds: float) -> None:
    """A client cannot answer a ping in the middle of a frame."""
    options = {"ping_interval": 0.3, "ping_timeout": 0.3, "message_timeout": seconds}
    async with relaying(node, **options) as (_, url):
        loop, sock = asyncio.get_running_loop(), await http_socket(url, UPGRADE + head(20))
        for _ in range(20):
            await asyncio.sleep(0.05)
            await loop.sock_sendall(sock, b"x")
        said = b""
        async with asyncio.timeout(10):
            while bytes((0x82, 20)) + 20 * b"x" not in said:
                data = await loop.sock_recv(sock, 1000)
                assert data, f"closed: {said!r}"
                said += data
        sock.close()  # or the server would wait for its close frame


# All of them together


async def test_beyond_max_buffered_who_goes_beyond_it_is_closed_with_1013(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        relaying(node, max_buffered=MEGABYTE) as (server, url),
        client(url) as one,
        client(url) as two,
        client(url) as small,
    ):
        put(one, head(900_000) + bytes(800_000))
        await until(lambda: kept(server) > 800_000)
        put(two, head(900_000) + bytes(300_000))
        assert await closed(two) == (1013, "too much is unfinished at this node")
        await until(lambda: kept(server) < 801_000, "nothing is kept of it")
        await small.send("not concerned")
        assert await received(small) == "not concerned"
        put(one, bytes(100_000))
        assert len(await received(one)) == 900_000
        await until(lambda: not kept(server))
    assert "max_buffered" in caplog.text


async def test_while_the_book_is_full_new_upgrades_and_requests_get_503(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        relaying(node, max_buffered=MEGABYTE) as (server, url),
        client(url) as full,
        client(url) as there,
        httpx.AsyncClient(base_url=url.replace("ws", "http", 1), trust_env=False) as http,
    ):
        put(full, head(2 * MEGABYTE) + bytes(MEGABYTE - len(head(2 * MEGABYTE))))
        await until(lambda: kept(server) == MEGABYTE)
        with pytest.raises(InvalidStatus) as refused:
            async with client(url):
                pass
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["retry-after"] == "1"
        assert (await http.get("/")).status_code == 503
        put(there, head(1000) + bytes(10))
        await until(lambda: kept(server) == MEGABYTE + 18, "a small message may be cut in two")
        put(there, bytes(990))
        assert await received(there) == bytes(1000)
        full.transport.abort()
        await until(lambda: not kept(server))
        assert (await http.get("/")).status_code == 426
    assert "127.0.0.1: 503: too much of what clients have begun is unfinished (max_buffered)" in (
        caplog.text
    )


@pytest.mark.parametrize(
    "begun", [head(90_000) + bytes(80_000), head(80_000, BEGUN) + bytes(80_000)]
)
@pytest.mark.parametrize("end", ["vanishes", "closes", "is closed", "is finished"])
async def test_whatever_becomes_of_it_nothing_stays_in_the_book(
    node: Node, begun: bytes, end: str
) -> None:
    async with relaying(node) as (server, url), client(url) as websocket:
        put(websocket, begun)
        await until(lambda: kept(server) >= 80_000)
        (info,) = [one.describe() for one in node.clients.connections.values()]
        assert info.unfinished >= 80_000
        match end:
            case "vanishes":
                websocket.transport.abort()
            case "closes" if begun[0] == BEGUN:
                await websocket.close()
            case "is closed":
                node.terminate(node.clients.connections.copy().popitem()[0])
            case _:
                rest = b"" if begun[0] == BINARY else head(10_000, 0x80)
                put(websocket, rest + bytes(10_000))
                assert len(await received(websocket)) == 90_000
        await until(lambda: not kept(server))


async def test_a_large_message_waits_outside_while_its_target_is_busy(
    node: Node, tmp_path: Path
) -> None:
    """One message of each client is not taken ahead if it is a large one."""
    go, many = tmp_path / "go", 5
    busy = node.spawn(room(rooms.read_on), None, str(go))
    app = WebSocketRelay(relay_to(busy), node=node)
    whole = head(MEGABYTE) + bytes(MEGABYTE)
    async with fronted(app) as (server, url), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(url)) for _ in range(many)]
        for one in clients:
            put(one, whole)
        connections = server.server_state.connections
        # The first is on its way to the process at once, the second fills the node's queue.
        await until(lambda: sum(one._held for one in connections) == many - 1)  # type: ignore[union-attr]
        assert node.engine.processes[busy].pipe.backlog < 1.2 * MEGABYTE
        assert kept(server) <= 3 * len(whole), "what else was begun is in the book"
        go.touch()
        for one in clients:
            assert len(await received(one)) == MEGABYTE


async def test_under_another_server_a_large_message_that_waits_is_counted(tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with Node(max_buffered=1_500_000) as node:
        busy = node.spawn(room(rooms.read_on), None, str(go))
        app = WebSocketRelay(relay_to(busy), node=node)
        async with (
            serving(app, "uvicorn") as url,
            client(url) as one,
            client(url) as two,
            client(url) as three,
        ):
            for _ in range(2):  # the first is on its way to the process at once
                await one.send(bytes(MEGABYTE))
            await until(lambda: node.engine.processes[busy].pipe.backlog > MEGABYTE / 2)
            await two.send(bytes(MEGABYTE))
            await until(lambda: node.buffered.size == MEGABYTE)
            await three.send(bytes(MEGABYTE))
            assert await closed(three) == (1013, "too much is unfinished at this node")
            await until(lambda: node.buffered.size == MEGABYTE)
            go.touch()
            for other in (one, one, two):
                assert len(await received(other)) == MEGABYTE
            assert node.buffered.size == 0


async def test_under_another_server_too_upgrades_get_503_while_the_book_is_full(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    node.buffered.size += node.buffered.most
    async with serving(app, "uvicorn") as url:
        with pytest.raises(InvalidStatus) as refused:
            async with client(url):
                pass
    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["retry-after"] == "1"
    assert "max_buffered" in caplog.text


async def test_what_max_buffered_may_be() -> None:
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(InvalidOptions, match=r"max_buffered is .* 1 byte or more"):
            Node(max_buffered=wrong)  # type: ignore[arg-type]
