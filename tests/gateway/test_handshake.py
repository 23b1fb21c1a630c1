"""What is refused as no handshake, before anybody is asked: RFC 6455 section 4.2.1."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest
import rooms
from starlette.requests import Request
from starlette.responses import Response
from support import endpoint, fronted, room, serving

from wsrelay import Node, RelayResponse, WebSocketRelay
from wsrelay.gateway import protocol
from wsrelay.relay.rate_limited_log import RateLimitedLog

pytestmark = pytest.mark.anyio

LINES = (
    b"Host: here",
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)


def head(*more: bytes, without: bytes = b"none", line: bytes = b"GET / HTTP/1.1") -> bytes:
    kept = [one for one in LINES if not one.startswith(without)]
    return b"\r\n".join([line, *kept, *more, b"", b""])


WRONG = {
    "no Connection: Upgrade": head(without=b"Connection"),
    "Connection: keep-alive": head(b"Connection: keep-alive", without=b"Connection"),
    "HTTP/1.0": head(line=b"GET / HTTP/1.0"),
    "POST": head(line=b"POST / HTTP/1.1"),
    "no host": head(without=b"Host"),
    "two hosts": head(b"Host: there"),
    "no key": head(without=b"Sec-WebSocket-Key"),
    "two keys": head(b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
    "the same key twice": head(LINES[3]),
    "a key that is no base64": head(b"Sec-WebSocket-Key: !", without=b"Sec-WebSocket-Key"),
    "a short key": head(b"Sec-WebSocket-Key: AAAA", without=b"Sec-WebSocket-Key"),
    "an empty key": head(b"Sec-WebSocket-Key:", without=b"Sec-WebSocket-Key"),
    "no version": head(without=b"Sec-WebSocket-Version"),
    "two versions": head(b"Sec-WebSocket-Version: 12"),
    "two origins": head(b"Origin: http://here", b"Origin: http://evil.example"),
    "a length": head(b"Content-Length: 5") + b"hello",
    "chunks": head(b"Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n",
    "a host that cannot be decoded": head(b"Host: \xc4", without=b"Host"),
    "a protocol that cannot be decoded": head(b"Sec-WebSocket-Protocol: \xc4"),
}
UNTAKEN = {name: WRONG[name] for name in ("no Connection: Upgrade", "Connection: keep-alive")}
"""What servers do not take for an upgrade, so that it comes as a plain request."""
RIGHT = {
    "a list": head(b"Upgrade: h2c, WebSocket", without=b"Upgrade"),
    "two lines of Upgrade": head(b"Upgrade: h2c"),
    "two lines of Connection": head(b"Connection: keep-alive"),
    "an empty body": head(b"Content-Length: 0"),
    "one origin": head(b"Origin: http://here"),
}


class Place:
    """A server whose application spawns for whatever it is asked, and says so."""

    def __init__(self, node: Node) -> None:
        self.asked: list[str] = []
        self.url = ""
        self._node = node
        self.app = WebSocketRelay(endpoint(self._answer), node=node)

    def _answer(self, request: Request) -> Response:
        self.asked.append(request.method)
        return RelayResponse(self._node.spawn(room(rooms.echo)))

    async def answer(self, data: bytes, *, ends: bool = False) -> tuple[int, dict[str, str], str]:
        """Status, headers and body; `ends`: then the server ends the connection."""
        host, port = self.url.removeprefix("ws://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            async with asyncio.timeout(20):
                writer.write(data)
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                assert not ends or await reader.read() == b""
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return int(lines[0].split()[1]), headers, body.decode()


@pytest.fixture
async def ours(node: Node) -> AsyncIterator[Place]:
    """Our front end, as `run` and `serve` have it."""
    place = Place(node)
    async with fronted(place.app) as (_, place.url):
        yield place


@pytest.fixture(params=["direct", "uvicorn", "hypercorn"])
async def elsewhere(node: Node, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    place = Place(node)
    async with serving(place.app, request.param) as place.url:
        yield place


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
async def test_what_is_no_handshake_gets_400_and_nobody_is_asked(
    ours: Place, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    status, headers, body = await ours.answer(data, ends=True)
    assert status == 400
    assert headers["connection"] == "close"
    assert body
    assert not ours.asked
    assert "Traceback" not in caplog.text


async def test_why_a_handshake_is_refused_is_told_in_the_log_and_in_the_answer(
    ours: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_refusals", RateLimitedLog(logging.getLogger()))
    for _ in range(20):
        _, _, body = await ours.answer(WRONG["no Connection: Upgrade"])
        assert "Connection: Upgrade" in body
    assert len(caplog.messages) == 5, "a stranger does not fill the log"
    assert "/: 400: no upgrade: it has no 'Connection: Upgrade'" in caplog.messages[0]


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
async def test_uvicorn_with_our_protocol_refuses_the_same(
    node: Node, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place(node)
    async with serving(place.app) as place.url:
        assert (await place.answer(data))[0] == 400
    assert not place.asked
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("data", UNTAKEN.values(), ids=UNTAKEN)
async def test_what_a_server_takes_for_a_plain_request_is_refused_by_the_relay(
    elsewhere: Place, data: bytes
) -> None:
    status, _, body = await elsewhere.answer(data)
    assert status == 400
    assert "Connection: Upgrade" in body
    assert not elsewhere.asked


async def test_an_origin_is_looked_at_however_the_upgrade_is_written(
    ours: Place, elsewhere: Place
) -> None:
    evil = b"Origin: http://evil.example"
    for place in (ours, elsewhere):
        for right in (head(), RIGHT["a list"], RIGHT["two lines of Upgrade"]):
            data = right[:-2] + evil + b"\r\n\r\n"
            status, headers, _ = await place.answer(data)
            # Hypercorn goes on in HTTP/2 where it is named, too.
            assert status == 403 or headers["upgrade"] == "h2c"
        assert not place.asked


@pytest.mark.parametrize("data", RIGHT.values(), ids=RIGHT)
async def test_what_may_be_written_otherwise_is_upgraded(ours: Place, data: bytes) -> None:
    status, headers, _ = await ours.answer(data)
    assert status == 101
    assert (headers["upgrade"], headers["connection"]) == ("websocket", "upgrade")
    assert ours.asked == ["GET"]


async def test_an_upgrade_to_something_else_is_a_plain_request(ours: Place) -> None:
    data = head(b"Upgrade: h2c", without=b"Upgrade")
    assert (await ours.answer(data))[0] == 426
    assert ours.asked == ["GET"]


@pytest.mark.parametrize("version", [b"12", b"14", b"013", b"13, 8"])
async def test_a_wrong_version_gets_426_that_names_the_right_one(
    ours: Place, version: bytes
) -> None:
    """RFC 6455 section 4.4, RFC 9110 section 15.5.22."""
    data = head(b"Sec-WebSocket-Version: " + version, without=b"Sec-WebSocket-Version")
    status, headers, body = await ours.answer(data, ends=True)
    assert status == 426
    assert headers["sec-websocket-version"] == "13"
    assert headers["upgrade"] == "websocket"
    assert headers["connection"] == "upgrade"
    assert version.decode() in body
    assert not ours.asked


@pytest.mark.parametrize("target", [b"http://here/", b"http://evil.example/", b"*"])
async def test_a_target_that_is_no_path_spawns_nothing(ours: Place, target: bytes) -> None:
    status, _, _ = await ours.answer(head(line=b"GET " + target + b" HTTP/1.1"))
    assert status in (403, 404)
    assert not ours.asked
