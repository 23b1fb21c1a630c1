"""Upgrades end to end: which of them come about, and what the others are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import rooms
from relayed import client, relayed
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from support import Journal, endpoint, received, relay_to, room, serving, until
from websockets.exceptions import InvalidStatus

from wsrelay import HostOptions, Node, RelayResponse, WebSocketRelay
from wsrelay.relay.probe import HandlerResponse, relay_headers

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["direct", "uvicorn", "hypercorn"])
def front_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def refusal(url: str, **options: Any) -> Any:
    with pytest.raises(InvalidStatus) as refused:
        async with client(url, **options):
            pass
    return refused.value.response


async def test_a_foreign_origin_gets_403_and_spawns_nothing(
    node: Node, front_end: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def answer(_: Request) -> Response:
        asked.append(1)
        return RelayResponse(node.spawn(room(rooms.echo)))

    async with serving(relayed(node, endpoint(answer)), front_end) as url:
        response = await refusal(url, origin="https://evil.example")
    assert response.status_code == 403
    assert not asked
    assert not node.workers
    assert "https://evil.example" in caplog.text
    assert url.removeprefix("ws://") in caplog.text
    assert "allowed_origins" in caplog.text


async def test_a_path_cannot_forge_a_line_of_the_log(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node)
    async with serving(app) as url:
        await refusal(f"{url}/a%0AERROR%20forged%1B[2J", origin="https://evil.example")
    assert r"/a\nERROR forged\x1b[2J" in caplog.text
    assert "\x1b" not in caplog.text


async def test_the_same_origin_and_an_allowed_one_pass(node: Node, front_end: str) -> None:
    app = relayed(
        node, relay_to(node.spawn(room(rooms.echo))), allowed_origins="https://*.example.com"
    )
    async with serving(app, front_end) as url:
        for origin in (url.replace("ws", "http"), "https://app.example.com"):
            async with client(url, origin=origin) as websocket:
                await websocket.send("in")
                assert await received(websocket) == "in"


async def test_an_answer_without_the_header_is_the_client_s(node: Node, front_end: str) -> None:
    app = endpoint(lambda _: PlainTextResponse("not today", 402, {"X-Why": "no funds"}))
    async with serving(relayed(node, app), front_end) as url:
        response = await refusal(url)
    assert response.status_code == 402
    assert response.headers["x-why"] == "no funds"
    assert response.body == b"not today"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"target_pid": 3}',
        '{"target_pid": "x"}',
        '{"target_pid": "{h|1}", "heartbeat_interval": "never"}',
        '{"target_pid": "{h|1}", "message_topic": "@exit"}',
        '{"target_pid": "{h|1}", "heart_beat": "3s"}',
    ],
)
async def test_a_wrong_header_gets_500_and_a_reason_in_the_log(
    node: Node, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    app = endpoint(lambda _: Response(headers={"X-WS-Relay": value}))
    async with serving(relayed(node, app)) as url:
        response = await refusal(url)
    assert response.status_code == 500
    assert "X-WS-Relay: " in caplog.text
    assert "x-ws-relay" not in response.headers


async def test_a_dead_target_gets_503(node: Node, front_end: str) -> None:
    pid = node.spawn(room(rooms.return_at_once))
    await until(lambda: pid not in node.workers, "the target has ended")
    async with serving(relayed(node, relay_to(pid)), front_end) as url:
        assert (await refusal(url)).status_code == 503


async def test_a_target_of_another_node_gets_503(node: Node) -> None:
    async with serving(relayed(node, relay_to("{elsewhere@processes|x.1}"))) as url:
        assert (await refusal(url)).status_code == 503


async def test_a_target_that_cannot_be_loaded_gets_503(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    app = endpoint(lambda _: RelayResponse(node.spawn(f"{rooms.__file__}:no_such_function")))
    async with serving(relayed(node, app)) as url:
        assert (await refusal(url)).status_code == 503
    assert "no function 'no_such_function'" in caplog.text


async def test_a_full_host_gets_503_with_retry_after() -> None:
    async with Node(hosts=[HostOptions(max_processes=1)]) as node:
        app = endpoint(lambda _: RelayResponse(node.spawn(room(rooms.echo))))
        async with serving(relayed(node, app)) as url, client(url) as websocket:
            response = await refusal(url)
            assert response.status_code == 503
            assert response.headers["retry-after"]
            await websocket.send("in")
            assert await received(websocket) == "in"


async def test_an_exception_in_the_handler_gets_500(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(_: Request) -> Response:
        raise ZeroDivisionError

    async with serving(relayed(node, endpoint(answer))) as url:
        response = await refusal(url)
    assert response.status_code == 500
    assert b"ZeroDivisionError" not in response.body
    assert "ZeroDivisionError" in caplog.text


async def test_cookies_travel_with_the_101_and_the_relay_header_does_not(
    node: Node, front_end: str
) -> None:
    def answer(request: Request) -> Response:
        assert "x-ws-relay" not in request.headers
        headers = {"set-cookie": "a=b", "x-mine": "1", "content-language": "de"}
        return RelayResponse(node.spawn(room(rooms.echo)), headers=headers)

    app = relayed(node, endpoint(answer))
    header = {"X-WS-Relay": '{"target_pid": "{a|b}"}'}
    async with (
        serving(app, front_end) as url,
        client(url, additional_headers=header) as websocket,
    ):
        assert websocket.response is not None
        headers = websocket.response.headers
        assert headers["set-cookie"] == "a=b"
        assert headers["x-mine"] == "1"
        assert "x-ws-relay" not in headers
        assert "content-language" not in headers


def test_cookies_travel_one_by_one_and_what_is_of_this_answer_or_hop_does_not() -> None:
    own = [
        *("Content-Type", "Content-Length", "Content-Encoding", "Connection", "Keep-Alive"),
        *("Proxy-Authenticate", "Proxy-Connection", "TE", "Trailer", "Transfer-Encoding"),
        *("Upgrade", "X-WS-Relay", "Sec-WebSocket-Accept", "Sec-WebSocket-Extensions"),
    ]
    cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    given = [(name.encode(), b"x") for name in own]
    given += [(b"Set-Cookie", value) for _, value in cookies]
    answer = HandlerResponse({"status": 200, "headers": given})
    assert relay_headers(answer) == (None, cookies)


async def test_the_header_counts_on_a_2xx_answer_alone_whose_body_is_dropped(node: Node) -> None:
    header = RelayResponse(node.spawn(room(rooms.echo))).headers["x-ws-relay"]

    def answer(request: Request) -> Response:
        return PlainTextResponse("the body", int(request.url.path[1:]), {"X-WS-Relay": header})

    async with serving(relayed(node, endpoint(answer))) as url:
        async with client(f"{url}/201") as websocket:
            await websocket.send("hello")
            assert await received(websocket) == "hello"
        for status in (302, 402):
            response = await refusal(f"{url}/{status}")
            assert (response.status_code, response.body) == (status, b"the body")
            assert "x-ws-relay" not in response.headers
            plain = await http(url, f"/{status}")
            assert plain.startswith(f"HTTP/1.1 {status} ".encode())
            assert plain.endswith(b"the body")
            assert b"x-ws-relay" not in plain.lower()


async def test_the_answer_selects_the_subprotocol(node: Node, front_end: str) -> None:
    headers = {"Sec-WebSocket-Protocol": "v2"}
    app = relayed(node, relay_to(node.spawn(room(rooms.echo)), headers=headers))
    async with (
        serving(app, front_end) as url,
        client(url, subprotocols=["v1", "v2"]) as websocket,
    ):
        assert websocket.subprotocol == "v2"


async def test_the_application_sees_the_offered_subprotocols_and_selects_one(
    node: Node, front_end: str
) -> None:
    seen: list[Any] = []

    def answer(request: Request) -> Response:
        seen[:] = [request.scope["subprotocols"], request.headers.get("sec-websocket-protocol")]
        pid = node.spawn(room(rooms.echo))
        return RelayResponse(pid, cancel_on_leave=True, subprotocol="chat.v1" if seen[1] else None)

    async with serving(relayed(node, endpoint(answer)), front_end) as url:
        async with client(url, subprotocols=["token.abc", "chat.v1"]) as websocket:
            assert websocket.subprotocol == "chat.v1"
        assert seen[0] == ["token.abc", "chat.v1"]
        assert [part.strip() for part in seen[1].split(",")] == ["token.abc", "chat.v1"]
        async with client(url) as websocket:
            assert websocket.subprotocol is None
        assert seen == [[], None]


async def test_a_subprotocol_that_was_not_offered_is_500_and_what_was_is_not_logged(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    app = relayed(node, relay_to(node.spawn(room(rooms.echo)), subprotocol="chat.v2"))
    async with serving(app) as url:
        response = await refusal(url, subprotocols=["token.abc"])
    assert response.status_code == 500
    assert "'chat.v2' was not offered" in caplog.text
    assert "token.abc" not in caplog.text


async def test_the_same_origin_passes_under_an_international_name(
    node: Node, front_end: str
) -> None:
    seen: list[str] = []

    def answer(request: Request) -> Response:
        seen.append(request.headers["host"])
        return RelayResponse(node.spawn(room(rooms.echo)), cancel_on_leave=True)

    host = "xn--bcher-kva.example:8000"
    async with serving(relayed(node, endpoint(answer)), front_end) as url:
        uri = f"ws://{host}/"
        address, port = url.removeprefix("ws://").split(":")
        async with client(uri, host=address, port=int(port), origin=f"http://{host}") as websocket:
            await websocket.send("x")
            assert await received(websocket) == "x"
    assert seen == [host]


async def test_plain_http_gets_426_and_its_target_does_not_stay(node: Node) -> None:
    app = endpoint(lambda _: RelayResponse(node.spawn(room(rooms.echo)), cancel_on_leave=True))
    async with serving(relayed(node, app)) as url:
        response = await http(url, "/")
        await until(lambda: not node.workers, "the target has ended")
    assert response.startswith(b"HTTP/1.1 426")
    assert b"upgrade: websocket" in response.lower()
    assert b"x-ws-relay" not in response.lower()


async def http(url: str, path: str) -> bytes:
    host, port = url.removeprefix("ws://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    response = await reader.read()
    writer.close()
    await writer.wait_closed()
    return response


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_a_client_that_vanishes_during_the_handshake_leaves_no_half_relay(
    node: Node, front_end: str, journal: Journal
) -> None:
    """The handler answers when the client is gone already: no join, and the target is cancelled."""
    gone = asyncio.Event()
    asked = asyncio.Event()

    async def answer(_: Request) -> Response:
        asked.set()
        await gone.wait()
        pid = node.spawn(room(rooms.record), None, str(journal.path))
        return RelayResponse(pid, cancel_on_leave=True)

    async with serving(relayed(node, endpoint(answer)), front_end) as url:
        host, port = url.removeprefix("ws://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(HANDSHAKE)
        await asked.wait()
        writer.transport.abort()
        gone.set()
        await until(lambda: not node.workers and not node.connections, "all is gone")
    assert "ws.message" not in journal.topics()
    assert journal.topics().count("ws.join") == journal.topics().count("ws.leave")


async def test_joins_and_leaves_come_in_pairs_whenever_clients_vanish(
    node: Node, front_end: str, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid)), front_end) as url:
        host, port = url.removeprefix("ws://").split(":")
        for turns in range(40):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(HANDSHAKE)
            for _ in range(turns):
                await asyncio.sleep(0)
            writer.transport.abort()
        async with client(url) as websocket:
            await websocket.send("end")
            await journal.line("ws.message")
        await until(lambda: not node.connections, "all connections are gone")
        node.cancel(pid)
        await until(lambda: not node.workers, "the target has ended")
    senders = [line["sender"] for line in journal.lines("ws.join")]
    assert sorted(senders) == sorted(line["sender"] for line in journal.lines("ws.leave"))
    assert len(set(senders)) == len(senders)


@pytest.mark.parametrize("front_end", ["direct", "uvicorn"])
async def test_an_offer_of_subprotocols_of_which_none_is_selected_is_told_once(
    node: Node, front_end: str, caplog: pytest.LogCaptureFixture
) -> None:
    def connect(request: Request) -> Response:
        chosen = "chat.v2" if "chat.v2" in request.scope["subprotocols"] else None
        return RelayResponse(node.spawn(room(rooms.echo)), cancel_on_leave=True, subprotocol=chosen)

    told = "none of the subprotocols that the client offers is selected"
    async with serving(WebSocketRelay(endpoint(connect), node=node), front_end) as url:
        for offer in ([], ["chat.v2"]):
            async with client(url, subprotocols=offer or None):
                pass
        assert told not in caplog.text
        for _ in range(2):
            async with client(url, subprotocols=["chat.v1"]) as websocket:
                assert websocket.subprotocol is None
    assert caplog.text.count(told) == 1
    assert "RelayResponse(subprotocol=" in caplog.text
    assert "chat.v1" not in caplog.text, "an offer may be a token"
