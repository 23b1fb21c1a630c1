"""Bounds that hold before anything is known of a client: at, below and above each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import rooms
import trustme
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from support import client, drop_all, endpoint, fronted, received, relay_to, room, until
from websockets.exceptions import InvalidStatus

from wsrelay import Node, WebSocketRelay
from wsrelay.gateway import admission
from wsrelay.gateway.admission import Admission
from wsrelay.values.bucket import Bucket

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


def hello(_: Request) -> Response:
    return PlainTextResponse("hello")


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = url.removeprefix("ws://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> str:
    """The head of a response."""
    async with asyncio.timeout(10):
        return (await reader.readuntil(b"\r\n\r\n")).decode()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the server closes."""
    async with asyncio.timeout(10):
        return await reader.read()


# How many connections


async def test_up_to_max_connections_are_served_and_the_next_gets_503() -> None:
    async with fronted(endpoint(hello), max_connections=2) as (server, url):
        async with connected(url) as (one, out), connected(url):
            out.write(REQUEST)
            assert (await answer(one)).startswith("HTTP/1.1 200")
            async with connected(url) as (three, asking):
                asking.write(REQUEST)
                head = await answer(three)
                assert head.startswith("HTTP/1.1 503 Service Unavailable\r\n")
                assert "retry-after: 1" in head
                assert await rest(three) == b""
            await until(lambda: server._state.admission.count == 2, "the refused one is gone")
            out.write(REQUEST)
            await one.readuntil(b"hello")
            assert (await answer(one)).startswith("HTTP/1.1 200"), "those that are in go on"
        await until(lambda: server._state.admission.count == 0, "all are gone")
        async with connected(url) as (reader, out):
            out.write(REQUEST)
            assert (await answer(reader)).startswith("HTTP/1.1 200"), "there is room again"


async def test_websockets_count_for_as_long_as_they_live(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with fronted(app, max_connections=1) as (server, url):
        async with client(url) as websocket:
            await websocket.send("in")
            assert await received(websocket) == "in"
            with pytest.raises(InvalidStatus) as refused:
                async with client(url):
                    pass
            assert refused.value.response.status_code == 503
            await until(lambda: server._state.admission.count == 1, "the refused one is gone")
        await until(lambda: server._state.admission.count == 0, "it is gone")
        async with client(url) as websocket:
            await websocket.send("in again")
            assert await received(websocket) == "in again"


async def test_one_address_gets_429_beyond_its_share(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admission, "_key", lambda host: host)  # loopback has no bound of its own
    async with (
        fronted(endpoint(hello), max_connections_per_ip=1) as (_, url),
        connected(url) as (one, out),
        connected(url) as (two, asking),
    ):
        asking.write(REQUEST)
        assert (await answer(two)).startswith("HTTP/1.1 429 Too Many Requests\r\n")
        out.write(REQUEST)
        assert (await answer(one)).startswith("HTTP/1.1 200")
    assert "127.0.0.1: 429: it has 1 connections (max_connections_per_ip)" in caplog.text


async def test_zero_is_no_bound() -> None:
    bounds = {"max_connections": 0, "max_connections_per_ip": 0}
    async with fronted(endpoint(hello), **bounds) as (_, url), contextlib.AsyncExitStack() as stack:
        for _ in range(30):
            reader, out = await stack.enter_async_context(connected(url))
            out.write(REQUEST)
            assert (await answer(reader)).startswith("HTTP/1.1 200")


async def test_a_flood_beyond_the_bound_gets_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_REFUSED", 1)
    async with (
        fronted(endpoint(hello), max_connections=1) as (server, url),
        connected(url),
        connected(url) as (polite, asking),
        connected(url) as (flood, _),
    ):
        with contextlib.suppress(ConnectionResetError):
            assert await rest(flood) == b""
        await until(lambda: server._state.admission.count == 2, "it is gone")
        asking.write(REQUEST)
        assert (await answer(polite)).startswith("HTTP/1.1 503")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["10.0.0.1", "10.0.0.2", "127.0.0.1"]))))
def test_what_leaves_makes_room_and_nothing_else_does(steps: list[tuple[bool, str]]) -> None:
    bound = Admission(5, 2)
    there: Counter[str] = Counter()
    for comes, host in steps:
        if comes:
            there[host] += 1
            expected = 503 if there.total() > 5 else 0
            if not expected and host != "127.0.0.1" and there[host] > 2:
                expected = 429
            assert bound.enter(host, 0.0) == expected
        elif there[host]:
            there[host] -= 1
            bound.leave(host)
    assert bound.count == there.total()
    assert bound._of == Counter({h: n for h, n in there.items() if n and h != "127.0.0.1"})


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", False),
        ("::1", "::1", False),
        ("::ffff:127.0.0.1", "127.0.0.1", False),
        (None, None, False),
        ("", "", False),
    ],
)
def test_which_addresses_count_together(
    one: str | None, other: str | None, *, together: bool
) -> None:
    bound = Admission(0, 1)
    assert bound.enter(one, 0.0) == 0
    assert (bound.enter(other, 0.0) == 429) is together


def test_a_flood_of_refusals_is_told_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    bound = Admission(1, 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            bound.enter("10.0.0.1", 0.0)
        assert len(caplog.records) == 5
        bound.enter("10.0.0.1", 1.0)
    assert caplog.messages[-1].endswith("; 994 more since")


@given(
    rate=st.floats(0.01, 1000),
    burst=st.integers(1, 100),
    gaps=st.lists(st.floats(0, 10), max_size=50),
)
def test_a_bucket_never_gives_more_than_its_burst_and_rate(
    rate: float, burst: int, gaps: list[float]
) -> None:
    bucket, now, given_out = Bucket(rate, burst), 0.0, 0
    for gap in gaps:
        now += gap
        wait = bucket.take(now)
        given_out += not wait
        assert given_out <= burst + rate * now + 1e-6
        if wait:
            now += wait
            assert bucket.take(now) == 0, "waiting as long as was said is enough"
            given_out += 1


# How long a request head may take


async def test_half_a_request_line_is_cut_off() -> None:
    async with (
        fronted(endpoint(hello), header_timeout=0.1) as (_, url),
        connected(url) as (reader, out),
    ):
        out.write(b"GET / HT")
        assert (await answer(reader)).startswith("HTTP/1.1 408 Request Timeout\r\n")
        assert await rest(reader) == b""


async def test_dripping_a_head_gains_no_time() -> None:
    async with (
        fronted(endpoint(hello), header_timeout=0.3) as (_, url),
        connected(url) as (reader, out),
    ):
        out.write(b"GET / HTTP/1.1\r\n")
        answered = asyncio.ensure_future(answer(reader))
        while not answered.done():
            out.write(b"x: y\r\n")
            await asyncio.wait({answered}, timeout=0.02)
        assert answered.result().startswith("HTTP/1.1 408")


async def test_a_client_that_says_nothing_is_cut_off() -> None:
    async with (
        fronted(endpoint(hello), header_timeout=0.1) as (_, url),
        connected(url) as (reader, _),
    ):
        assert (await rest(reader)).startswith(b"HTTP/1.1 408")


async def test_half_a_second_request_is_cut_off_too() -> None:
    async with (
        fronted(endpoint(hello), header_timeout=0.5, keep_alive=30) as (_, url),
        connected(url) as (reader, out),
    ):
        out.write(REQUEST)
        assert (await answer(reader)).startswith("HTTP/1.1 200")
        await reader.readuntil(b"hello")
        out.write(b"GET / HT")
        assert (await answer(reader)).startswith("HTTP/1.1 408")


async def test_garbage_behind_a_request_gets_400_and_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fronted(endpoint(hello)) as (server, url), connected(url) as (reader, out):
        out.write(REQUEST + b"\x00\xff garbage\r\n\r\n")
        assert (await answer(reader)).startswith("HTTP/1.1 ")
        await rest(reader)
        await until(lambda: not server.server_state.tasks, "the application has ended")
    assert "Traceback" not in caplog.text


async def test_a_head_in_time_is_served_however_long_the_answer_takes() -> None:
    go = asyncio.Event()

    async def slow(_: Request) -> Response:
        await go.wait()
        return PlainTextResponse("hello")

    async with (
        fronted(endpoint(slow), header_timeout=0.5) as (_, url),
        connected(url) as (reader, out),
    ):
        for byte in REQUEST:
            out.write(bytes([byte]))
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, go.set)
        assert (await answer(reader)).startswith("HTTP/1.1 200")


async def test_a_websocket_outlives_the_header_timeout(node: Node) -> None:
    app = WebSocketRelay(
        relay_to(node.spawn(room(rooms.echo)), heartbeat_interval="50ms"), node=node
    )
    async with fronted(app, header_timeout=0.5) as (_, url), client(url) as websocket:
        loop = asyncio.get_running_loop()
        late = loop.create_future()
        loop.call_later(1.0, late.set_result, None)
        await late
        await websocket.send("still here")
        assert await received(websocket) == "still here"


async def test_an_unfinished_tls_handshake_is_cut_off(tmp_path: Path) -> None:
    authority = trustme.CA()
    cert = authority.issue_cert("localhost")
    cert.private_key_and_cert_chain_pem.write_to_path(tmp_path / "all.pem")
    options = {"cert": tmp_path / "all.pem", "key": tmp_path / "all.pem"}
    async with (
        fronted(endpoint(hello), header_timeout=1.0, **options) as (_, url),
        connected(url) as (reader, _),
    ):
        assert await rest(reader) == b""
        context = ssl.create_default_context()
        authority.configure_trust(context)
        port = int(url.rpartition(":")[2])
        secure, out = await asyncio.open_connection("localhost", port, ssl=context)
        out.write(REQUEST)
        assert (await answer(secure)).startswith("HTTP/1.1 200")
        out.close()


# How large a request head may be


def sized(size: int, path: str = "/") -> bytes:
    """A request whose head has so many bytes."""
    start = f"GET {path} HTTP/1.1\r\nHost: here\r\nX-Padded:   ".encode()
    return start + b"x" * (size - len(start) - 8) + b"    \r\n\r\n"


@pytest.mark.parametrize("piece", [100_000, 1400, 7], ids=["at once", "segments", "drops"])
@pytest.mark.parametrize(("size", "status"), [(5000, 200), (5001, 431), (9000, 431)])
async def test_a_head_counts_alike_however_it_arrives(
    piece: int, size: int, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with fronted(endpoint(hello), max_head_size=5000) as (_, url), connected(url) as streams:
        reader, out = streams
        data = sized(size)
        for start in range(0, size, piece):
            out.write(data[start : start + piece])
            await out.drain()
            await asyncio.sleep(0)
        assert (await answer(reader)).startswith(f"HTTP/1.1 {status} ")
        if status == 431:
            assert b"more than 5000 bytes (max_head_size)" in await rest(reader)
            assert "431: the head of a request has more than 5000 bytes" in caplog.text
        else:
            assert not caplog.messages


async def test_a_body_is_no_head() -> None:
    async with fronted(endpoint(hello), max_head_size=1024) as (_, url), connected(url) as streams:
        reader, out = streams
        out.write(b"GET / HTTP/1.1\r\nHost: here\r\nContent-Length: 5000\r\n\r\n" + bytes(5000))
        assert (await answer(reader)).startswith("HTTP/1.1 200 ")


async def test_a_later_request_s_head_counts_too() -> None:
    async with fronted(endpoint(hello), max_head_size=1024) as (_, url), connected(url) as streams:
        reader, out = streams
        out.write(REQUEST + sized(1025))
        assert (await answer(reader)).startswith("HTTP/1.1 200 ")
        assert b"HTTP/1.1 431 " in await rest(reader)


async def test_an_answer_reaches_a_client_that_is_still_sending() -> None:
    """A socket that is closed with bytes unread is reset, and the answer with it."""
    async with fronted(endpoint(hello), max_head_size=1024) as (_, url), connected(url) as streams:
        reader, out = streams
        for _ in range(20):
            out.write(b"x" * 100_000)
            await out.drain()
        assert (await answer(reader)).startswith("HTTP/1.1 431 ")
        assert b"max_head_size" in await rest(reader)


async def test_cookies_of_sixty_kilobytes_pass_by_default(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    cookies = {"Cookie": "x" * 60_000}
    async with fronted(app) as (_, url), client(url, additional_headers=cookies) as websocket:
        await websocket.send("hello")
        assert await received(websocket) == "hello"


async def test_a_length_beside_chunks_is_refused_and_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """RFC 9112 section 6.3: what stands behind is a smuggled request, or a chunk."""
    asked: list[str] = []

    def listen(request: Request) -> Response:
        asked.append(request.url.path)
        return PlainTextResponse("hello")

    both = (
        b"POST /one HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
    )
    async with fronted(endpoint(listen)) as (_, url), connected(url) as (reader, out):
        out.write(both + b"0\r\n\r\n" + REQUEST)
        assert (await answer(reader)).startswith("HTTP/1.1 400 ")
        assert b"HTTP" not in (await rest(reader)).replace(b"not HTTP/1.1", b"")
    assert not asked
    assert "Content-Length beside Transfer-Encoding" in caplog.text


async def test_what_is_no_http_is_not_quoted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with fronted(endpoint(hello)) as (_, url), connected(url) as (reader, out):
        out.write(b"GET / HTTP/1.1\r\nHost: x\r\nCookie : secret\r\n\r\n")
        assert (await answer(reader)).startswith("HTTP/1.1 400 ")
        await rest(reader)
    assert "400: not HTTP/1.1: illegal header line" in caplog.text
    assert "secret" not in caplog.text


# Clients that vanish without a word


@pytest.mark.skipif(sys.platform != "linux", reason="needs TCP_USER_TIMEOUT and a socket filter")
@pytest.mark.parametrize("silent", [True, False], ids=["without FIN", "with FIN"])
async def test_a_client_of_a_busy_target_that_vanishes_is_noticed_before_the_target_looks(
    node: Node, tmp_path: Path, *, silent: bool
) -> None:
    """While nobody reads the client no pong is due: the kernel has to notice."""
    go = tmp_path / "go"
    pid = node.spawn(room(rooms.read_on), None, str(go))
    app = WebSocketRelay(relay_to(pid), node=node)
    async with fronted(app, ping_interval=0.2, ping_timeout=0.2) as (_, url):
        async with client(url) as websocket:
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.3):
                        await websocket.send(bytes(100_000))
            await until(lambda: node.engine.processes[pid].pipe.full, "the target is busy")
            if silent:
                drop_all(websocket.transport.get_extra_info("socket"))
            else:
                websocket.transport.abort()
            await until(lambda: not node.connections, "the connection has ended")
            websocket.transport.abort()
        assert pid in node.workers
        await asyncio.to_thread(go.touch)
