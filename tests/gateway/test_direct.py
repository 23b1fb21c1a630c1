"""The direct transport: what it does beyond what every transport does (see test_relay)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import rooms
from rfc6455_client import BINARY, PING, TEXT, frame
from support import client, closed, fronted, received, relay_to, room, serving, until
from wsproto import events
from wsproto.connection import Connection, ConnectionType

from wsrelay import Node, WebSocketRelay
from wsrelay.gateway import direct, protocol
from wsrelay.relay.asgi import Receive, Scope, Send
from wsrelay.session.command import SendCommand
from wsrelay.session.rfc6455 import PONG

pytestmark = pytest.mark.anyio

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CHUNKED = HANDSHAKE.replace(b"Host:", b"Transfer-Encoding: chunked\r\nHost:")
"""An upgrade with a body: what follows is looked at as such."""
EARLY = ["message", "request", "garbage"]
"""What a client sends too early; the bytes themselves are no name, for a mask is drawn by lot."""


def masked(data: bytes) -> bytes:
    return Connection(ConnectionType.CLIENT).send(events.BytesMessage(data))


@contextlib.asynccontextmanager
async def asked(
    url: str, early: bytes = b"", handshake: bytes = HANDSHAKE
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that has asked for an upgrade; nothing takes it longer than ten seconds."""
    host, port = url.removeprefix("ws://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(10):
            writer.write(handshake + early)
            await writer.drain()
            yield reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_an_idle_connection_has_no_task(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with fronted(app) as (server, url):
        before = len(asyncio.all_tasks())
        clients = [client(url, ping_interval=None) for _ in range(40)]
        websockets = [await one.__aenter__() for one in clients]
        for websocket in websockets:
            await websocket.send("hello")
            assert await received(websocket) == "hello"
        mine = 2 * len(websockets)  # those of the clients in this very process
        await until(
            lambda: len(asyncio.all_tasks()) <= before + mine, "the server has no tasks of theirs"
        )
        assert not server.server_state.tasks
        for one in clients:
            await one.__aexit__(None, None, None)


async def test_a_shutdown_of_the_server_alone_closes_with_1012(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with fronted(app) as (server, url), client(url) as websocket:
        await server.aclose()
        assert (await closed(websocket))[0] == 1012
        await until(lambda: not node.connections, "the connection has ended")


async def test_outer_middleware_sees_the_request_end_at_the_upgrade(node: Node) -> None:
    relay = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    over = asyncio.Event()

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        await relay(scope, receive, send)
        if scope["type"] == "websocket":
            over.set()

    async with serving(outer) as url, client(url) as websocket:
        async with asyncio.timeout(10):
            await over.wait()
        await websocket.send("still here")
        assert await received(websocket) == "still here"


@pytest.mark.parametrize("at_once", [True, False])
async def test_what_a_client_sends_before_its_upgrade_is_not_lost(
    node: Node, at_once: bool
) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    data = masked(b"early") + masked(b"half")
    async with fronted(app) as (_, url), asked(url, data[:-5] if at_once else b"") as streams:
        reader, writer = streams
        writer.write(data[-5:] if at_once else data)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(13) == b"\x82\x05early\x82\x04half"


@pytest.mark.parametrize("early", [masked(b"early"), HANDSHAKE, b"no HTTP\r\n\r\n"], ids=EARLY)
@pytest.mark.parametrize("handshake", [HANDSHAKE, CHUNKED], ids=["plain", "chunked"])
@pytest.mark.parametrize("wrong", [(b"Version: 13", b"Version: 12"), (b"Key", b"Kez")])
async def test_what_comes_behind_an_upgrade_that_is_refused_goes_nowhere(
    node: Node, handshake: bytes, wrong: tuple[bytes, bytes], early: bytes
) -> None:
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    broken = handshake.replace(*wrong)
    async with fronted(app) as (_, url), asked(url, early, broken) as (reader, _):
        assert (await reader.readline()).startswith(b"HTTP/1.1 4")
        await reader.read()
    assert not problems


@pytest.mark.parametrize("early", [masked(b"late"), HANDSHAKE, b"no HTTP\r\n\r\n"], ids=EARLY)
async def test_what_comes_while_a_refusal_is_on_its_way_goes_nowhere(
    node: Node, early: bytes
) -> None:
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    said = asyncio.Event()

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"no", "more_body": True})
            await said.wait()
            await send({"type": "http.response.body", "body": b"body"})

    app = WebSocketRelay(refuse, node=node)
    async with fronted(app) as (_, url), asked(url) as (reader, writer):
        assert (await reader.readline()).startswith(b"HTTP/1.1 403")
        writer.write(early)
        await writer.drain()
        for _ in range(10):  # turns of the event loop that the server shares
            await asyncio.sleep(0)
        said.set()
        assert b"body" in await reader.read()
    assert not problems


async def test_a_client_that_sends_much_before_its_upgrade_is_cut_off(node: Node) -> None:
    asking, never = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        if scope["type"] == "http":
            asking.set()
            await never.wait()

    async with serving(WebSocketRelay(slow, node=node)) as url, asked(url) as (reader, writer):
        await asking.wait()
        writer.write(bytes(100_000))
        said = b""
        with contextlib.suppress(ConnectionError):
            said = await reader.read()
        assert said == b""
        never.set()


async def test_many_small_messages_in_one_read_arrive_in_order(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    texts = [f"{number}".encode() for number in range(500)]
    async with serving(app) as url, asked(url) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"".join(map(masked, texts)))
        for text in texts:
            assert await reader.readexactly(2 + len(text)) == bytes((0x82, len(text))) + text


async def test_frames_that_come_byte_by_byte_are_put_together(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    ping = Connection(ConnectionType.CLIENT).send(events.Ping(b"are you there"))
    async with serving(app) as url, asked(url) as (reader, writer):
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await reader.readuntil(b"\r\n\r\n")
        for byte in masked(b"x" * 130) + ping + masked(b"end"):
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        expected = (
            b"\x82\x7e\x00\x82" + b"x" * 130,
            bytes((PONG, 13)) + b"are you there",
            b"\x82\x03end",
        )
        said = await reader.readexactly(sum(map(len, expected)))
    assert all(part in said for part in expected)


async def test_whole_messages_keep_their_place_among_all_else(node: Node) -> None:
    """However a client's writes are cut: each is read before the next one is written."""
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    small, other = frame(BINARY, b"small"), frame(TEXT, "größer".encode())
    begin, end = frame(TEXT, b"in ", fin=False), frame(0, b"two")
    long = frame(BINARY, b"x" * 300)
    writes = {
        small: [b"\x82\x05small"],
        other: [b"\x81\x08" + "größer".encode()],
        small[:5]: [],
        small[5:] + other + small[:1]: [b"\x82\x05small", b"\x81\x08" + "größer".encode()],
        small[1:]: [b"\x82\x05small"],
        begin: [],
        frame(PING): [b"\x8a\x00"],
        end: [b"\x81\x06in two"],
        frame(BINARY): [b"\x82\x00"],
        long: [b"\x82\x7e\x01\x2c" + b"x" * 300],
        small + frame(PING, b"last"): [b"\x8a\x04last", b"\x82\x05small"],
    }
    async with fronted(app) as (server, url), asked(url) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        [connection] = server.server_state.connections
        assert isinstance(connection, direct.DirectProtocol)
        for data, answers in writes.items():
            writer.write(data)
            for answer in answers:
                assert await reader.readexactly(len(answer)) == answer
            if not answers:
                await until(lambda: connection._since, "it has begun")


async def test_a_message_that_is_no_text_fails_a_connection_that_has_said_much(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with serving(app) as url, asked(url) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(3):
            writer.write(frame(TEXT, b"text"))
            assert await reader.readexactly(6) == b"\x81\x04text"
        writer.write(frame(TEXT, b"\xff"))
        assert (await reader.read())[2:4] == (1007).to_bytes(2, "big")


@pytest.mark.parametrize("most", [10, 125, 126, 300])
async def test_a_message_above_the_limit_fails_a_connection_that_has_said_much(
    node: Node, most: int
) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with serving(app, ws_max_size=most) as url, asked(url) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(3):
            writer.write(frame(TEXT, b"x" * most))
            await reader.readuntil(b"x" * most)
        writer.write(frame(TEXT, b"x" * (most + 1)))
        assert (await reader.readexactly(4))[2:] == (1009).to_bytes(2, "big")


async def test_messages_that_come_one_by_one_wait_for_a_busy_target_too(
    node: Node, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.read_on), None, str(go))), node=node)
    async with fronted(app) as (server, url), client(url, max_size=None) as websocket:
        [protocol] = server.server_state.connections
        assert isinstance(protocol, direct.DirectProtocol)
        connection = protocol._connection
        assert connection is not None
        sent = 0
        while not protocol._held and sent < 20:  # 1.2 MB
            sent += 1
            await websocket.send(f"{sent:060000}")
            await until(lambda: connection.message_count == sent)  # noqa: B023 - at once
        assert protocol._held
        await websocket.send("one more")
        await until(lambda: protocol._rest, "it was read and waits")
        assert connection.message_count == sent
        go.touch()
        for number in range(1, sent + 1):
            assert await received(websocket) == f"{number:060000}"
        assert await received(websocket) == "one more"


async def test_a_frame_is_written_at_once_only_if_nothing_is_in_its_way(node: Node) -> None:
    pid = node.spawn(room(rooms.echo))
    app = WebSocketRelay(relay_to(pid), node=node)
    async with fronted(app) as (server, url), client(url) as websocket:
        [protocol] = server.server_state.connections
        assert isinstance(protocol, direct.DirectProtocol)
        connection = protocol._connection
        assert connection is not None
        assert connection.write_through(b"\x81\x01a")
        connection._session.outbox.put(SendCommand("b"))
        assert not connection.write_through(b"\x81\x01c"), "it would overtake"
        protocol.resume_writing()
        protocol.pause_writing()
        assert not connection.write_through(b"\x81\x01d"), "the client does not read"
        protocol.resume_writing()
        assert connection.write_through(b"\x81\x01e")
        assert [await received(websocket) for _ in range(3)] == ["a", "b", "e"]
        connection.stop("enough", pid)
        assert not connection.write_through(b"\x81\x01f"), "nothing follows a close frame"
        assert await closed(websocket) == (1000, "enough")


async def test_a_cancelled_target_that_has_been_told_much_is_told_no_more(node: Node) -> None:
    pid = node.spawn(room(rooms.deaf))
    app = WebSocketRelay(relay_to(pid), node=node)
    async with fronted(app) as (server, url), client(url) as websocket:
        [protocol] = server.server_state.connections
        assert isinstance(protocol, direct.DirectProtocol)
        connection = protocol._connection
        assert connection is not None
        for count in (1, 2, 3):
            await websocket.send("hello")
            await until(lambda: connection.message_count == count)  # noqa: B023 - at once
        before = node.dead_letters
        node.cancel(pid)
        await websocket.send("hello")
        await until(lambda: node.dead_letters == before + 1, "it is a dead letter")
        node.terminate(pid)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 4096, 65_535, 65_536])
async def test_messages_of_any_size_follow_each_other(node: Node, size: int) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with serving(app) as url, client(url, max_size=None) as websocket:
        for data in ("x" * size, bytes(size), "é" * (size // 2), "x" * size):
            await websocket.send(data)
            assert await received(websocket) == data


@pytest.mark.parametrize(
    "header", [b"\x82\xfe\x00\x7d", b"\x82\xff" + (200).to_bytes(8, "big"), b"\x82\x7e\x00\xc8"]
)
async def test_a_wrong_header_fails_a_connection_that_has_said_much(
    node: Node, header: bytes
) -> None:
    """A length that is longer than need be, or no mask."""
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with serving(app) as url, asked(url) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(3):
            writer.write(frame(TEXT, b"text"))
            assert await reader.readexactly(6) == b"\x81\x04text"
        writer.write(header + bytes(4 + (125 if header[1] == 0xFE else 200)))
        assert (await reader.readexactly(4))[2:] == (1002).to_bytes(2, "big")


@contextlib.contextmanager
def each_turn(look: Callable[[], int]) -> Iterator[list[int]]:
    """What is seen in each turn of the event loop."""
    loop, seen, goes_on = asyncio.get_running_loop(), [look()], True

    def turn() -> None:
        if goes_on:
            seen.append(look())
            loop.call_soon(turn)

    turn()
    yield seen
    goes_on = False


async def test_a_flood_of_small_frames_leaves_all_others_their_turns(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 0

    class Counting(direct.DirectProtocol):
        __slots__ = ()

        def _pass_on(self, data: bytes) -> None:
            nonlocal taken
            taken += 1
            super()._pass_on(data)

    monkeypatch.setattr(protocol, "DirectProtocol", Counting)
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    flood = b"\x02\x81\0\0\0\0a" + b"\x80\x81\0\0\0\0b"
    async with fronted(app) as (_, url), asked(url) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        with each_turn(lambda: taken) as seen:
            writer.write(flood * 2000)
            await reader.readexactly(2000 * 4)
        assert taken == 4000
        assert max(after - before for before, after in itertools.pairwise(seen)) <= direct._AT_ONCE
