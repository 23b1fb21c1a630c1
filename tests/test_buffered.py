"""What clients begin and do not finish: each has its time, and all of them together a bound."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from support import (
    client,
    closed,
    connected,
    endpoint,
    fronted,
    received,
    relay_to,
    room,
    serving,
    until,
)
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from wsrelay import Node, WebSocketRelay
from wsrelay.gateway import address
from wsrelay.gateway.endpoint import EndpointApp
from wsrelay.gateway.server import Server, ServerOptions
from wsrelay.relay.asgi import App
from wsrelay.session.rfc6455 import BINARY
from wsrelay.values.bounds import InvalidOptions

pytestmark = pytest.mark.anyio

MEGABYTE = 1_000_000
NO_MASK = bytes(4)


def head(size: int, first: int = BINARY) -> bytes:
    """The header of a client's frame."""
    if size < 126:
        return bytes((first, 0x80 | size)) + NO_MASK
    if size < 2**16:
        return bytes((first, 0xFE)) + size.to_bytes(2, "big") + NO_MASK
    return bytes((first, 0xFF)) + size.to_bytes(8, "big") + NO_MASK


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

BEGUN = 0x02
"""The first byte of the first of several frames."""
GOES_ON = 0x00


def put(websocket: ClientConnection, data: bytes) -> None:
    """Send bytes behind the library's back."""
    websocket.transport.write(data)


@contextlib.asynccontextmanager
async def relaying(node: Node, **options: Any) -> AsyncIterator[tuple[Server, str]]:
    app = WebSocketRelay(relay_to(node.spawn(room("echo"))), node=node)
    async with fronted(app, **options) as (server, url):
        yield server, url


def kept(server: Server) -> int:
    return server._state.buffered.size


OPENED: list[socket.socket] = []


@pytest.fixture(autouse=True)
async def _sockets_are_closed() -> AsyncIterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


async def http_socket(url: str, request: bytes) -> socket.socket:
    """A client that reads nothing by itself and holds little."""
    sock = await connected(url)
    OPENED.append(sock)
    await asyncio.get_running_loop().sock_sendall(sock, request)
    return sock


async def read_all(sock: socket.socket) -> bytes:
    loop, said = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(sock, 65536):
                said += data
    return bytes(said)


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
    async with relaying(node, message_timeout=1.0) as (_, url), client(url) as websocket:
        whole = head(10) + bytes(10)
        put(websocket, whole[:5])
        for _ in range(30):
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
    app = WebSocketRelay(relay_to(node.spawn(room("read_on"), None, str(go))), node=node)
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
    busy = node.spawn(room("read_on"), None, str(go))
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
        busy = node.spawn(room("read_on"), None, str(go))
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
    app = WebSocketRelay(relay_to(node.spawn(room("echo"))), node=node)
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


# Request bodies


POST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"


async def collect(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


@pytest.mark.parametrize(
    "begun",
    [POST, POST + b"x", CHUNKED + b"5\r\nab", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" + POST],
    ids=["nothing", "a little", "half a chunk", "behind another request"],
)
async def test_a_body_of_which_nothing_comes_any_more_gets_408(
    begun: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    gone = asyncio.Event()

    async def count(request: Request) -> Response:
        try:
            return await collect(request)
        finally:
            if request.method == "POST":
                gone.set()

    async with fronted(either(count), body_timeout=0.2) as (server, url):
        sock = await http_socket(url, begun)
        said = await read_all(sock)
        assert b"HTTP/1.1 408 Request Timeout\r\n" in said
        await asyncio.wait_for(gone.wait(), 10)
        await until(lambda: not server.server_state.connections and not kept(server))
    assert "timeouts.body" in caplog.text


def either(answer: Callable[[Request], Awaitable[Response]]) -> App:
    """An application that takes GET and POST."""
    return Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])


class Body:
    """How the server looks after the body of its one connection's request."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def _connection(self) -> Any:
        [connection] = self._server.server_state.connections
        return connection

    async def begun(self) -> None:
        """Wait until a body is looked after."""
        await until(lambda: self._server.server_state.connections, "the request has come")
        connection = self._connection()
        await until(lambda: connection._next_look)

    async def paused(self, *, paused: bool = True) -> None:
        """Wait until the server reads no more of it, or reads on."""
        flow = self._connection().flow
        await until(lambda: flow.read_paused is paused)

    def look(self) -> None:
        """Look as if the time was over, and wait the whole time again."""
        connection = self._connection()
        connection._next_look.cancel()
        connection._look_for_body()

    async def heard(self) -> None:
        """Wait until more has come since the last look."""
        connection = self._connection()
        await until(lambda: connection._heard)


async def test_a_body_that_comes_bit_by_bit_takes_as_long_as_it_takes() -> None:
    async with fronted(either(collect)) as (server, url):
        sock, body = await http_socket(url, POST), Body(server)
        loop = asyncio.get_running_loop()
        await body.begun()
        for _ in range(19):
            await loop.sock_sendall(sock, bytes(5000))
            await body.heard()
            body.look()
        await loop.sock_sendall(sock, bytes(5000))
        assert (await loop.sock_recv(sock, 1000)).endswith(b"\r\n\r\n100000")


@pytest.mark.parametrize("looks", [0, 1, 3])
async def test_nothing_of_a_body_is_due_while_the_application_does_not_read_it(looks: int) -> None:
    """Nor at once when it does, for what is in the network takes its time."""
    go, size = asyncio.Event(), 2 * MEGABYTE

    async def later(request: Request) -> Response:
        await go.wait()
        return await collect(request)

    async with fronted(either(later)) as (server, url):
        sock, body = await http_socket(url, POST.replace(b"100000", b"%d" % size)), Body(server)
        loop = asyncio.get_running_loop()
        sent = asyncio.ensure_future(loop.sock_sendall(sock, bytes(size)))
        await body.begun()
        await body.paused()
        for _ in range(looks):
            body.look()
        go.set()
        await body.paused(paused=False)
        body.look()
        await sent
        assert (await loop.sock_recv(sock, 1000)).endswith(b"\r\n\r\n%d" % size)


@pytest.mark.parametrize("looks", [0, 1, 3])
async def test_who_waits_for_100_continue_is_not_late(looks: int) -> None:
    go = asyncio.Event()

    async def later(request: Request) -> Response:
        await go.wait()
        return await collect(request)

    async with fronted(either(later)) as (server, url):
        request = POST.replace(b"Host", b"Expect: 100-continue\r\nHost")
        sock, body = await http_socket(url, request), Body(server)
        loop = asyncio.get_running_loop()
        await body.begun()
        for _ in range(looks):
            body.look()
        go.set()
        assert (await loop.sock_recv(sock, 1000)).startswith(b"HTTP/1.1 100")
        body.look()
        await loop.sock_sendall(sock, bytes(100_000))
        assert (await loop.sock_recv(sock, 1000)).endswith(b"\r\n\r\n100000")


async def test_a_body_that_goes_on_after_its_answer_is_due_all_the_same() -> None:
    async with fronted(endpoint(lambda _: PlainTextResponse("done")), body_timeout=0.2) as (_, url):
        sock = await http_socket(url, POST.replace(b"POST", b"GET") + b"x")
        assert b"done" in await read_all(sock)


async def test_bodies_that_nobody_takes_are_counted_and_bounded() -> None:
    never = asyncio.Event()

    async def wait(_: Request) -> Response:
        await never.wait()
        return Response()

    async with fronted(either(wait), max_buffered=100_000) as (server, url):
        await http_socket(url, POST + bytes(99_999))
        await until(lambda: kept(server) > 60_000)
        two = await http_socket(url, POST + bytes(99_999))
        assert b"HTTP/1.1 503 Service Unavailable\r\n" in await read_all(two)
        never.set()
        for sock in OPENED:
            sock.close()
        await until(lambda: not kept(server))


@contextlib.asynccontextmanager
async def collecting(
    node: Node, function: Callable[[Request], Any]
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an endpoint as a configuration does."""
    relay = WebSocketRelay(either_endpoint(function), node=node)
    listener = address.bind("127.0.0.1", 0)
    server = Server(relay, listener, ServerOptions(), node.buffered)
    await server.start()
    try:
        async with httpx.AsyncClient(
            base_url=address.url(listener), trust_env=False, timeout=20
        ) as http:
            yield http
    finally:
        server.stop_accepting()
        await server.aclose()


def either_endpoint(function: Callable[[Request], Any]) -> App:
    return Starlette(routes=[Route("/", EndpointApp(function, "it"), methods=["GET", "POST"])])


async def test_a_body_that_an_endpoint_collects_counts_and_one_that_it_streams_does_not() -> None:
    seen = []

    async def endpoint(request: Request) -> str:
        if request.query_params.get("how") == "stream":
            size = 0
            async for chunk in request.stream():
                size += len(chunk)
        else:
            size = len(await request.body())
            seen.append(node.buffered.size)
        return str(size)

    async with Node(max_buffered=MEGABYTE) as node, collecting(node, endpoint) as http:
        for size in (500_000, 3 * MEGABYTE):
            answer = await http.post("/", params={"how": "stream"}, content=bytes(size))
            assert answer.text == str(size)
        assert (await http.post("/", content=bytes(500_000))).text == "500000"
        assert 500_000 <= seen[0] < MEGABYTE, "what was not taken yet may count twice"
        refused = await http.post("/", content=bytes(3 * MEGABYTE))
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        await until(lambda: not node.buffered.size)


# Responses


def answers(size: int) -> Any:
    return endpoint(lambda _: PlainTextResponse(bytes(size)))


GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
LAST = GET.replace(b"Host", b"Connection: close\r\nHost")


@pytest.mark.parametrize("request_", [GET, LAST, UPGRADE], ids=["GET", "the last", "an upgrade"])
@pytest.mark.parametrize("streams", [False, True], ids=["at once", "streamed"])
async def test_a_client_that_takes_nothing_of_its_response_is_dropped(
    node: Node, request_: bytes, *, streams: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def bits() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield bytes(50_000)

    def answer(_: Request) -> Response:
        return StreamingResponse(bits(), 403) if streams else PlainTextResponse(bytes(10**7), 403)

    app = WebSocketRelay(endpoint(answer), node=node)
    async with fronted(app, response_timeout=0.2) as (server, url):
        await http_socket(url, request_)
        await until(lambda: kept(server) > (40_000 if streams else 10 * MEGABYTE / 2))
        await until(lambda: not server.server_state.connections, "it is dropped")
        await until(lambda: not server.server_state.tasks and not kept(server))
    assert "it has taken nothing of its response for 0.2 s (timeouts.response)" in caplog.text


async def test_a_client_that_reads_its_response_slowly_gets_all_of_it() -> None:
    timeout, size = 1.0, 4 * MEGABYTE
    async with fronted(answers(size), response_timeout=timeout) as (_, url):
        sock = await http_socket(url, LAST)
        loop, taken = asyncio.get_running_loop(), 0
        for _ in range(8):
            await asyncio.sleep(timeout / 4)
            taken += len(await loop.sock_recv(sock, 100_000))
        taken += len(await read_all(sock))
        assert taken > size


async def test_a_stream_may_be_silent_for_longer_than_a_response_may_wait() -> None:
    async def events() -> AsyncIterator[str]:
        yield "data: first\n\n"
        await asyncio.sleep(0.5)
        yield "data: last\n\n"

    app = endpoint(lambda _: StreamingResponse(events(), media_type="text/event-stream"))
    async with fronted(app, response_timeout=0.1, body_timeout=0.1) as (_, url):
        base = url.replace("ws", "http", 1)
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=20) as http:
            assert (await http.get("/")).text == "data: first\n\ndata: last\n\n"


async def test_responses_that_wait_are_counted_and_bounded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fronted(answers(10 * MEGABYTE), max_buffered=11 * MEGABYTE) as (server, url):
        one = await http_socket(url, LAST)
        await until(lambda: kept(server) > 5 * MEGABYTE)
        two = await http_socket(url, LAST)
        assert len(await read_all(two)) < 10 * MEGABYTE, "it is cut off"
        assert kept(server) < 10 * MEGABYTE
        assert len(await read_all(one)) > 10 * MEGABYTE
        for sock in OPENED:
            sock.close()
        await until(lambda: not kept(server))
    assert "too much waits for clients in this node (max_buffered)" in caplog.text
