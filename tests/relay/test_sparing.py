"""Log lines that clients cause: short, few for each address, and none left out uncounted."""

from __future__ import annotations

import asyncio
import logging

import httpx
import pytest
from support import fronted, until

from wsrelay import Node, WebSocketRelay
from wsrelay.gateway import errors
from wsrelay.gateway.allowed_hosts import AllowedHosts
from wsrelay.relay import rate_limited_log
from wsrelay.relay.asgi import Event, Receive, Scope, Send
from wsrelay.relay.rate_limited_log import RateLimitedLog
from wsrelay.session.hosts import Hosts

pytestmark = pytest.mark.anyio

logger = logging.getLogger("strangers")


def say(lines: RateLimitedLog, now: float, client: str | None, count: int = 1) -> None:
    for _ in range(count):
        lines.warning(now, "%s: refused", client, client=client)


def test_each_address_has_its_lines_and_one_that_floods_takes_none_of_another_s(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = RateLimitedLog(logger)
    say(lines, 0.0, "10.0.0.1", 1000)
    assert caplog.messages == ["10.0.0.1: refused"] * 5
    say(lines, 0.0, "10.0.0.2")
    say(lines, 1.0, "10.0.0.1")
    assert caplog.messages[5:] == ["10.0.0.2: refused", "10.0.0.1: refused; 995 more since"]


@pytest.mark.parametrize(
    ("network", "count"),
    [("2001:db8::{:x}", 5), ("::ffff:10.0.0.1", 5), ("2001:db8:0:{:x}::1", 20)],
)
def test_an_ipv6_client_counts_by_its_64(
    caplog: pytest.LogCaptureFixture, network: str, count: int
) -> None:
    lines = RateLimitedLog(logger)
    for number in range(20):
        say(lines, 0.0, network.format(number))
    assert len(caplog.messages) == count


def test_a_million_addresses_fill_neither_log_nor_memory(caplog: pytest.LogCaptureFixture) -> None:
    lines = RateLimitedLog(logger)
    for number in range(20_000):
        say(lines, 0.0, f"10.{number >> 8 & 255}.{number & 255}.1")
    assert len(caplog.messages) == 50
    assert len(lines._of) == 1000
    assert len(lines._left_out) <= 1001
    assert sum(lines._left_out.values()) == 20_000 - 50


async def test_what_was_left_out_is_told_though_no_other_line_comes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limited_log, "_PATIENCE", 0.01)
    lines = RateLimitedLog(logger)
    say(lines, 0.0, "10.0.0.1", 8)
    say(lines, 0.0, "10.0.0.2", 6)
    told = "4 more lines that clients caused were left out, 3 of them of 10.0.0.1"
    await until(lambda: told in caplog.messages, "it is told")
    say(lines, 0.0, "10.0.0.3", 6)
    told = "1 more line that a client caused was left out, 1 of them of 10.0.0.3"
    await until(lambda: told in caplog.messages, "it is told again")
    assert lines._timer is None


async def refuse(app: WebSocketRelay | AllowedHosts, header: bytes, value: bytes) -> int:
    """Ask for a WebSocket with that header; returns the status."""
    events: asyncio.Queue[Event] = asyncio.Queue()
    scope: Scope = {
        "type": "websocket",
        "path": "/ws/\n\x1b[2J" + "x" * 60_000,
        "headers": [(b"host", b"here"), (b"upgrade", b"websocket")],
        "client": ("203.0.113.9", 1),
        "extensions": {"websocket.http.response": {}},
    }
    scope["headers"] = [one for one in scope["headers"] if one[0] != header] + [(header, value)]

    async def receive() -> Event:
        return {"type": "websocket.connect"}

    await app(scope, receive, events.put)
    status: int = events.get_nowait()["status"]
    return status


async def nobody(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("it is asked")


@pytest.mark.parametrize("what", ["origin", "host"])
async def test_what_a_client_wants_logged_is_cut_and_told_a_few_times(
    caplog: pytest.LogCaptureFixture, what: str
) -> None:
    async with Node() as node:
        app = (
            WebSocketRelay(nobody, node=node)
            if what == "origin"
            else AllowedHosts(nobody, Hosts("app.example.com"), "--allowed-hosts")
        )
        for _ in range(100):
            assert await refuse(app, what.encode(), b"https://\x1b[31m\xff" + b"x" * 60_000) == 403
    lines = [line for line in caplog.messages if "403" in line]
    assert len(lines) == 5
    for line in lines:
        assert len(line) < 1000
        assert line.startswith(r"/ws/\n\x1b[2Jxxx")
        assert r"https://\x1b[31m" in line
        assert line.endswith("the client is 203.0.113.9")


async def test_errors_that_clients_cause_in_an_application_are_told_a_few_times(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_lines", RateLimitedLog(logging.getLogger("uvicorn.error")))

    async def expects_json(scope: Scope, _receive: Receive, _send: Send) -> None:
        if scope["type"] != "lifespan":
            raise ValueError("no JSON")

    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    async with fronted(expects_json) as (_, url), httpx.AsyncClient() as http:
        for number in range(40):
            headers = upgrade if number % 2 else {}
            answer = await http.get(url.replace("ws", "http", 1), headers=headers)
            assert answer.status_code == 500
    told = [one for one in caplog.records if one.getMessage().startswith("Exception in ASGI")]
    assert 5 <= len(told) < 40
    assert all(one.exc_info and str(one.exc_info[1]) == "no JSON" for one in told)
