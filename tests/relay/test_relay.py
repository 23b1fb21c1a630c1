"""The relay end to end: real clients, real sockets, real workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rooms
from relayed import client, relayed
from starlette.requests import Request
from starlette.responses import Response
from support import Journal, closed, endpoint, received, relay_to, room, say, serving, until
from websockets.exceptions import InvalidStatus

from wsrelay import Node, RelayResponse

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["direct", "uvicorn", "hypercorn"])
def front_end(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("handler", [rooms.echo, rooms.aio_echo])
async def test_text_and_binary_go_to_the_target_and_back(
    node: Node, front_end: str, handler: Callable[..., Any]
) -> None:
    app = relayed(node, relay_to(node.spawn(room(handler))))
    async with serving(app, front_end) as url, client(url) as websocket:
        for data in ("héllo", b"\x00\xff", "", b"", "x" * 300_000, bytes(1_000_000)):
            await websocket.send(data)
            assert await received(websocket) == data


async def test_where_compression_is_negotiated(node: Node, front_end: str) -> None:
    app = relayed(node, relay_to(node.spawn(room(rooms.echo))))
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
    pid = node.spawn(room(rooms.record), None, str(journal.path))
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
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = relayed(node, relay_to(pid, message_topic="chat"))
    async with serving(app) as url, client(url) as websocket:
        await websocket.send("hello")
        assert (await journal.line("chat"))["payload"]["data"] == "hello"


async def test_heartbeats_tell_uptime_and_message_count(node: Node, journal: Journal) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    app = relayed(node, relay_to(pid, heartbeat_interval="20ms", metadata={"user": "ada"}))
    async with serving(app) as url, client(url) as websocket:
        await websocket.send("one")
        me = (await journal.line("ws.message"))["sender"]
        count = len(journal.lines("ws.heartbeat"))
        beat = await journal.line("ws.heartbeat", count + 2)
    late = beat["payload"]
    uptime = late["uptime"]
    assert type(uptime) is float
    assert uptime > 0
    assert beat["sender"] == me
    assert late == {
        "client_pid": me,
        "uptime": uptime,
        "message_count": 1,
        "metadata": {"user": "ada"},
    }
    beats = [line["payload"]["uptime"] for line in journal.lines("ws.heartbeat")]
    assert beats == sorted(beats)


async def test_any_other_topic_becomes_a_json_text_message(node: Node, journal: Journal) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        me = (await journal.line("ws.join"))["sender"]
        node.send(me, "score", {"points": 3, "raw": b"\x01\x02"})
        expected = {"topic": "score", "data": {"points": 3, "raw": "AQI="}}
        assert json.loads(await received(websocket)) == expected


async def test_ws_close_closes_with_its_code_and_reason(
    node: Node, front_end: str, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid)), front_end) as url, client(url) as websocket:
        await say(websocket, "send", None, "ws.send", {"type": "text", "data": "last"})
        await say(websocket, "send", None, "ws.close", {"code": 4321, "reason": "enough"})
        assert await received(websocket) == "last"
        assert await closed(websocket) == (4321, "enough")
        leave = (await journal.line("ws.leave"))["payload"]
        assert (leave["code"], leave["reason"]) == (4321, "enough")


async def test_a_close_without_payload_is_a_normal_one(node: Node, journal: Journal) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        await say(websocket, "send", None, "ws.close", None)
        assert await closed(websocket) == (1000, "")


async def test_a_long_reason_is_cut_at_a_character(node: Node, journal: Journal) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
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
    pid = node.spawn(room(rooms.record), None, str(journal.path))
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
    first = node.spawn(room(rooms.record), None, str(old.path))
    second = node.spawn(room(rooms.record), None, str(new.path))
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
    pid = node.spawn(room(rooms.record), None, str(journal.path))
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
    pid = node.spawn(room(rooms.record), None, str(journal.path))
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
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid)), front_end) as url, client(url) as websocket:
        await say(websocket, *order)
        assert await closed(websocket) == (code, reason)


async def test_kill_9_closes_its_clients_with_1011_and_others_notice_nothing(
    node: Node, front_end: str
) -> None:
    victim, other = node.spawn(room(rooms.echo)), node.spawn(room(rooms.echo))
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
    pid = node.spawn(room(rooms.return_on), None, str(tmp_path / "now"))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        (tmp_path / "now").touch()
        assert await closed(websocket) == (1013, "target process exited")


async def test_all_that_a_target_sent_arrives_before_the_close_frame(
    node: Node, front_end: str
) -> None:
    pid = node.spawn(room(rooms.burst_and_return))
    async with serving(relayed(node, relay_to(pid)), front_end) as url, client(url) as websocket:
        await websocket.send("10000")
        texts = [await received(websocket) for _ in range(10_000)]
        assert texts == [str(number) for number in range(10_000)]
        assert await closed(websocket) == (1000, "target process exited")


async def test_cancel_on_a_connection_closes_it_normally(node: Node, journal: Journal) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        node.cancel((await journal.line("ws.join"))["sender"], "moved")
        assert await closed(websocket) == (1000, "moved")


async def test_terminate_on_a_connection_drops_it(node: Node, journal: Journal) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid))) as url, client(url) as websocket:
        node.terminate((await journal.line("ws.join"))["sender"])
        assert await closed(websocket) == (1006, "")
        assert (await journal.line("ws.leave"))["payload"]["code"] == 1006


async def test_a_client_that_vanishes_leaves_with_1006(
    node: Node, front_end: str, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with serving(relayed(node, relay_to(pid)), front_end) as url, client(url) as websocket:
        await journal.line("ws.join")
        websocket.transport.abort()
        assert (await journal.line("ws.leave"))["payload"]["code"] == 1006
    assert journal.topics() == ["ws.join", "ws.leave"]


async def test_a_message_over_the_size_limit_closes_with_1009(
    node: Node, front_end: str, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
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
    pid = node.spawn(room(rooms.record), None, str(journal.path))
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
        pids.append(node.spawn(room(rooms.echo)))
        return RelayResponse(
            pids[-1], cancel_on_leave=True, headers={"sec-websocket-protocol": "not-offered"}
        )

    async with serving(relayed(node, endpoint(answer))) as url:
        with pytest.raises(InvalidStatus):
            async with client(url):
                pass
        await until(lambda: not node.workers, "the target has ended")
    assert len(pids) == 1
