"""Bodies that clients do not finish and responses that they do not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from support import endpoint, fronted, until
from unfinished_clients import MEGABYTE, OPENED, UPGRADE, http_socket, kept

from wsrelay import Node, WebSocketRelay
from wsrelay.gateway import address
from wsrelay.gateway.endpoint import EndpointApp
from wsrelay.gateway.server import Server, ServerOptions
from wsrelay.relay.asgi import App

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def _sockets_are_closed() -> AsyncIterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


async def read_all(sock: socket.socket) -> bytes:
    loop, said = asyncio.get_running_loop(), bytearray()
    async with asyncio.timeout(20):
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(sock, 65536):
                said += data
    return bytes(said)


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
    begun: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrelay.gateway.http._LINGER", 0.2)
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
    timeout, size = 0.4, 4 * MEGABYTE
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
