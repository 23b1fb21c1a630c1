"""The relay end to end: real clients, real sockets, real workers."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from support import (
    Journal,
    client,
    closed,
    endpoint,
    received,
    relay_to,
    room,
    say,
    serving,
    until,
)
from websockets.exceptions import InvalidStatus

from wsrelay import HostOptions, Node, RelayResponse, WebSocketRelay

pytestmark = pytest.mark.anyio

client = functools.partial(client, compression="deflate")  # offers it, as browsers do


@pytest.fixture(params=["direct", "uvicorn", "hypercorn"])
def front_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def relayed(node: Node, app: Any, **options: Any) -> WebSocketRelay:
    return WebSocketRelay(app, node=node, **options)


@pytest.mark.parametrize("handler", ["echo", "aio_echo"])
async def test_text_and_binary_go_to_the_target_and_back(
    node: Node, front_end: str, handler: str
) -> None:
    app = relayed(node, relay_to(node.spawn(room(handler))))
    async with serving(app, front_end) as url, client(url) as websocket:
        for data in ("héllo", b"\x00\xff", "", b"", "x" * 300_000, bytes(1_000_000)):
            await websocket.send(data)
            assert await received(websocket) == data


async def test_where_compression_is_negotiated(node: Node, front_end: str) -> None:
    app = relayed(node, relay_to(node.spawn(room("echo"))))
    async with serving(app, front_end) as url, client(url) as websocket:
        negotiated = [extension.name for extension in websocket.protocol.extensions]
        assert negotiated == ([] if front_end == "direct" else ["permessage-deflate"])
        await websocket.send("hello")
        assert await received(websocket) == "hello"


def as_told(front_end: str, code: int, reason: str) -> tuple[int, str]:
    """How a client's end is told to the target: hypercorn reports 1006 for every one."""
    return (1006, "") if front_end == "hypercorn" else (code, reason)


async def test_join_message_and_leave_carry_what_the_contract_says(
    node: Node, front_end: str, journal: Journal
) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    metadata = {"user": "ada", "nested": {"list": [1, None]}}
    app = relayed(node, relay_to(pid, metadata=metadata))
    async with serving(app, front_end) as url:
        async with client(url) as websocket:
            await websocket.send("hello")
            await websocket.close(4001, "bye")
        leave = await journal.line("ws.leave")
    join, message = journal.lines("ws.join")[0], journal.lines("ws.message")[0]
    me = join["sender"]
    assert join["payload"] == {"client_pid": me, "metadata": metadata}
    assert message["payload"] == {
        "client_pid": me,
        "type": "text",
        "data": "hello",
        "metadata": metadata,
    }
    code, reason = as_told(front_end, 4001, "bye")
    assert leave["payload"] == {
        "client_pid": me,
        "code": code,
        "reason": reason,
        "metadata": metadata,
    }
    assert journal.topics() == ["ws.join", "ws.message", "ws.leave"]
    assert {line["sender"] for line in journal.lines()} == {me}


async def test_messages_can_have_a_topic_of_their_own(node: Node, journal: Journal) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    app = relayed(node, relay_to(pid, message_topic="chat"))
    async with serving(app) as url, client(url) as websocket:
        await websocket.send("hello")
        assert (await journal.line("chat"))["payload"]["data"] == "hello"


async def test_heartbeats_tell_uptime_and_message_count(node: Node, journal: Journal) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    app = relayed(node, relay_to(pid, heartbeat_interval="20ms"))
    async with serving(app) as url, client(url) as websocket:
        await websocket.send("one")
        await journal.line("ws.message")
        count = len(journal.lines("ws.heartbeat"))
        late = (await journal.line("ws.heartbeat", count + 2))["payload"]
    assert late["message_count"] == 1
    assert late["uptime"] > 0
    beats = [line["payload"]["uptime"] for line in journal.lines("ws.heartbeat")]
    assert beats == sorted(beats)


async def test_any_other_topic_becomes_a_json_text_message(node: Node, journal: Journal) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        me = (await journal.line("ws.join"))["sender"]
        node.send(me, "score", {"points": 3, "raw": b"\x01\x02"})
        expected = {"topic": "score", "data": {"points": 3, "raw": "AQI="}}
        assert json.loads(await received(websocket)) == expected


async def test_ws_close_closes_with_its_code_and_reason(
    node: Node, front_end: str, journal: Journal
) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid)), front_end) as url, client(url) as websocket:
        await say(websocket, "send", None, "ws.send", {"type": "text", "data": "last"})
        await say(websocket, "send", None, "ws.close", {"code": 4321, "reason": "enough"})
        assert await received(websocket) == "last"
        assert await closed(websocket) == (4321, "enough")
        leave = (await journal.line("ws.leave"))["payload"]
        assert (leave["code"], leave["reason"]) == (4321, "enough")


async def test_a_close_without_payload_is_a_normal_one(node: Node, journal: Journal) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        await say(websocket, "send", None, "ws.close", None)
        assert await closed(websocket) == (1000, "")


async def test_a_long_reason_is_cut_at_a_character(node: Node, journal: Journal) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        await say(websocket, "send", None, "ws.close", {"reason": "ab" + "é" * 100})
        assert await closed(websocket) == (1000, "ab" + "é" * 60)


@pytest.mark.parametrize(
    ("topic", "payload", "error"),
    [
        ("ws.send", {"type": "text", "data": b"x".hex().encode().decode() and 3}, "data"),
        ("ws.send", {"data": "x"}, "type"),
        ("ws.send", {"type": "json", "data": "x"}, "json"),
        ("ws.send", "text", "object"),
        ("ws.close", {"code": 1006}, "1006"),
        ("ws.close", {"code": "1000"}, "code"),
        ("ws.control", {"target": "x"}, "target"),
        ("ws.control", {"target_pid": "nobody"}, "nobody"),
        ("ws.control", {"target_pid": "{processes|gone}"}, "not alive"),
        ("ws.control", {"heartbeat_interval": "fast"}, "fast"),
        ("ws.control", {"message_topic": "@x"}, "@x"),
    ],
)
async def test_an_unusable_command_is_answered_with_ws_error(
    node: Node, journal: Journal, topic: str, payload: Any, error: str
) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        await say(websocket, "send", None, topic, payload)
        answer = await journal.line("ws.error")
        assert answer["payload"]["topic"] == topic
        assert error in answer["payload"]["error"]
        assert answer["payload"]["client_pid"] == answer["sender"]
        await say(websocket, "send", None, "ws.send", {"type": "text", "data": "still here"})
        assert await received(websocket) == "still here"


# Transfer


async def test_a_transfer_moves_the_client_without_losing_or_doubling_messages(
    node: Node, front_end: str, tmp_path: Path
) -> None:
    old, new = Journal(tmp_path / "old"), Journal(tmp_path / "new")
    first = node.spawn(room("record"), None, str(old.path))
    second = node.spawn(room("record"), None, str(new.path))
    app = relayed(node, relay_to(first, metadata={"n": 1}))
    async with serving(app, front_end) as url, client(url) as websocket:
        sent = 0

        async def talk_until(condition: Callable[[], Any]) -> None:
            nonlocal sent
            while not condition():
                await websocket.send(str(sent))
                sent += 1
                await asyncio.sleep(0)

        await talk_until(lambda: len(old.lines("ws.message")) > 10)
        control = {"target_pid": second, "metadata": {"n": 2}, "message_topic": "later"}
        await say(websocket, "send", None, "ws.control", control)
        await talk_until(lambda: len(new.lines("later")) > 10)
        await until(
            lambda: len(old.lines("ws.message")) + len(new.lines("later")) == sent + 1,
            "all messages have arrived",
        )
        leave, join = await old.line("ws.leave"), await new.line("ws.join")
    assert leave["payload"]["reason"] == "transferred"
    assert join["payload"]["metadata"] == {"n": 2}
    texts = [line["payload"]["data"] for line in old.lines("ws.message") + new.lines("later")]
    assert [t for t in texts if not t.startswith("!")] == [str(n) for n in range(sent)]
    assert old.topics()[0] == "ws.join"
    assert old.topics()[-1] == "ws.leave"
    assert new.topics()[0] == "ws.join"


async def test_the_same_target_again_is_no_transfer(node: Node, journal: Journal) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        control = {"target_pid": pid, "metadata": {"new": True}}
        await say(websocket, "send", None, "ws.control", control)
        await websocket.send("before or after")
        await say(websocket, "send", None, "ws.send", {"type": "text", "data": "done"})
        assert await received(websocket) == "done"
        await websocket.send("after")
        last = await journal.line("ws.message", 4)
    assert last["payload"]["metadata"] == {"new": True}
    assert journal.topics().count("ws.join") == 1


async def test_a_connection_cannot_be_a_target(node: Node, journal: Journal) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        me = (await journal.line("ws.join"))["sender"]
        await say(websocket, "send", None, "ws.control", {"target_pid": me})
        assert "is a connection" in (await journal.line("ws.error"))["payload"]["error"]
        async with serving(relayed(node, relay_to(me))) as other:
            with pytest.raises(InvalidStatus) as refused:
                async with client(other):
                    pass
            assert refused.value.response.status_code == 500


# Ends


@pytest.mark.parametrize(
    ("order", "code", "reason"),
    [
        (["exit", 0], 1000, "target process exited"),
        (["abort", 0], 1000, "target process exited"),
        (["exit", 3], 1011, "target process crashed"),
        (["abort", 3], 1011, "target process crashed"),
        (["raise", "secret"], 1011, "target process crashed"),
        (["kill", "SIGKILL"], 1011, "target process killed (SIGKILL)"),
        (["kill", "SIGSEGV"], 1011, "target process killed (SIGSEGV)"),
    ],
)
async def test_the_target_s_end_is_the_close_code(
    node: Node, front_end: str, journal: Journal, order: list[Any], code: int, reason: str
) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid)), front_end) as url, client(url) as websocket:
        await say(websocket, *order)
        assert await closed(websocket) == (code, reason)


async def test_kill_9_closes_its_clients_with_1011_and_others_notice_nothing(
    node: Node, front_end: str
) -> None:
    victim, other = node.spawn(room("echo")), node.spawn(room("echo"))
    app = endpoint(lambda r: RelayResponse(victim if r.url.path == "/victim" else other))
    async with (
        serving(relayed(node, app), front_end) as url,
        client(f"{url}/victim") as one,
        client(f"{url}/victim") as two,
        client(f"{url}/other") as spared,
    ):
        os.kill(node.workers[victim] or 0, signal.SIGKILL)
        assert await closed(one) == (1011, "target process killed (SIGKILL)")
        assert await closed(two) == (1011, "target process killed (SIGKILL)")
        await spared.send("still here")
        assert await received(spared) == "still here"


async def test_a_client_that_a_closing_room_never_saw_is_asked_to_come_again(
    node: Node, tmp_path: Path
) -> None:
    pid = node.spawn(room("return_on"), None, str(tmp_path / "now"))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        (tmp_path / "now").touch()
        assert await closed(websocket) == (1013, "target process exited")


async def test_all_that_a_target_sent_arrives_before_the_close_frame(
    node: Node, front_end: str
) -> None:
    pid = node.spawn(room("burst_and_return"))
    async with serving(relayed(node, relay_to(pid)), front_end) as url, client(url) as websocket:
        await websocket.send("10000")
        texts = [await received(websocket) for _ in range(10_000)]
        assert texts == [str(number) for number in range(10_000)]
        assert await closed(websocket) == (1000, "target process exited")


async def test_cancel_on_a_connection_closes_it_normally(node: Node, journal: Journal) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        node.cancel((await journal.line("ws.join"))["sender"], "moved")
        assert await closed(websocket) == (1000, "moved")


async def test_terminate_on_a_connection_drops_it(node: Node, journal: Journal) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        node.terminate((await journal.line("ws.join"))["sender"])
        assert await closed(websocket) == (1006, "")
        assert (await journal.line("ws.leave"))["payload"]["code"] == 1006


async def test_a_client_that_vanishes_leaves_with_1006(
    node: Node, front_end: str, journal: Journal
) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid)), front_end) as url, client(url) as websocket:
        await journal.line("ws.join")
        websocket.transport.abort()
        assert (await journal.line("ws.leave"))["payload"]["code"] == 1006
    assert journal.topics() == ["ws.join", "ws.leave"]


async def test_a_message_over_the_size_limit_closes_with_1009(
    node: Node, front_end: str, journal: Journal
) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    app = relayed(node, relay_to(pid))
    async with serving(app, front_end, ws_max_size=1000) as url, client(url) as websocket:
        await websocket.send("x" * 1000)
        await journal.line("ws.message")
        await websocket.send("x" * 1001)
        assert (await closed(websocket))[0] == 1009
        leave = (await journal.line("ws.leave"))["payload"]
        assert leave["code"] == as_told(front_end, 1009, "")[0]


# cancel_on_leave


async def test_cancel_on_leave_ends_the_target_with_its_connection(
    node: Node, front_end: str, journal: Journal
) -> None:
    pid = node.spawn(room("record"), None, str(journal.path))
    app = relayed(node, relay_to(pid, cancel_on_leave=True))
    async with serving(app, front_end) as url:
        async with client(url):
            await journal.line("ws.join")
        await until(lambda: pid not in node.workers, "the target has ended")
    assert journal.topics() == ["ws.join", "ws.leave"]


async def test_cancel_on_leave_ends_the_target_of_an_upgrade_that_does_not_come_about(
    node: Node,
) -> None:
    pids = []

    def answer(_: Request) -> Response:
        pids.append(node.spawn(room("echo")))
        return RelayResponse(
            pids[-1], cancel_on_leave=True, headers={"sec-websocket-protocol": "not-offered"}
        )

    async with serving(relayed(node, endpoint(answer))) as url:
        with pytest.raises(InvalidStatus):
            async with client(url):
                pass
        await until(lambda: not node.workers, "the target has ended")
    assert len(pids) == 1


# Before the upgrade


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
        return RelayResponse(node.spawn(room("echo")))

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
    app = WebSocketRelay(relay_to(node.spawn(room("echo"))), node=node)
    async with serving(app) as url:
        await refusal(f"{url}/a%0AERROR%20forged%1B[2J", origin="https://evil.example")
    assert r"/a\nERROR forged\x1b[2J" in caplog.text
    assert "\x1b" not in caplog.text


async def test_the_same_origin_and_an_allowed_one_pass(node: Node, front_end: str) -> None:
    app = relayed(node, relay_to(node.spawn(room("echo"))), allowed_origins="https://*.example.com")
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
    pid = node.spawn(room("return_at_once"))
    await until(lambda: pid not in node.workers, "the target has ended")
    async with serving(relayed(node, relay_to(pid)), front_end) as url:
        assert (await refusal(url)).status_code == 503


async def test_a_target_of_another_node_gets_503(node: Node) -> None:
    async with serving(relayed(node, relay_to("{elsewhere@processes|x.1}"))) as url:
        assert (await refusal(url)).status_code == 503


async def test_a_target_that_cannot_be_loaded_gets_503(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    app = endpoint(lambda _: RelayResponse(node.spawn(room("no_such_function"))))
    async with serving(relayed(node, app)) as url:
        assert (await refusal(url)).status_code == 503
    assert "no function 'no_such_function'" in caplog.text


async def test_a_full_host_gets_503_with_retry_after() -> None:
    async with Node(hosts=[HostOptions(max_processes=1)]) as node:
        app = endpoint(lambda _: RelayResponse(node.spawn(room("echo"))))
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
        return RelayResponse(node.spawn(room("echo")), headers=headers)

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


async def test_the_answer_selects_the_subprotocol(node: Node, front_end: str) -> None:
    headers = {"Sec-WebSocket-Protocol": "v2"}
    app = relayed(node, relay_to(node.spawn(room("echo")), headers=headers))
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
        pid = node.spawn(room("echo"))
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
    app = relayed(node, relay_to(node.spawn(room("echo")), subprotocol="chat.v2"))
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
        return RelayResponse(node.spawn(room("echo")), cancel_on_leave=True)

    host = "xn--bcher-kva.example:8000"
    async with serving(relayed(node, endpoint(answer)), front_end) as url:
        uri = f"ws://{host}/"
        address, port = url.removeprefix("ws://").split(":")
        async with client(uri, host=address, port=int(port), origin=f"http://{host}") as websocket:
            await websocket.send("x")
            assert await received(websocket) == "x"
    assert seen == [host]


async def test_plain_http_gets_426_and_its_target_does_not_stay(node: Node) -> None:
    app = endpoint(lambda _: RelayResponse(node.spawn(room("echo")), cancel_on_leave=True))
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
        pid = node.spawn(room("record"), None, str(journal.path))
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
    pid = node.spawn(room("record"), None, str(journal.path))
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
        return RelayResponse(node.spawn(room("echo")), cancel_on_leave=True, subprotocol=chosen)

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
