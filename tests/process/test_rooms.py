"""Rooms as classes, in both faces: which hook gets what, when, and how they end."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import room_classes
from exits import Exits
from one_node import left_as_found, one_node
from starlette.requests import Request
from support import TIMEOUT, client, closed, endpoint, received, serving, until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from wsrelay import InvalidTarget, Node, RelayResponse, WebSocketRelay, WsrelayError
from wsrelay.aio import process as aio_process
from wsrelay.errors import RelayRefused

pytestmark = pytest.mark.anyio

BOTH = pytest.mark.parametrize("face", ["sync", "aio"])


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with one_node() as node:
        yield node


@pytest.fixture(scope="module")
async def front(shared: Node) -> AsyncIterator[str]:
    def answer(request: Request) -> RelayResponse:
        options = json.loads(request.query_params["options"])
        return RelayResponse(request.query_params["target"], **options)

    async with serving(WebSocketRelay(endpoint(answer), node=shared)) as url:
        yield url


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


@contextlib.asynccontextmanager
async def joined(front: str, pid: str, **options: Any) -> AsyncIterator[ClientConnection]:
    async with client(f"{front}/?target={pid}&options={quote(json.dumps(options))}") as websocket:
        yield websocket


@BOTH
async def test_each_hook_gets_its_own_in_order_of_arrival(
    node: Node, front: str, face: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(getattr(room_classes.Diary, face), None, "blue", size=3)
    async with joined(front, pid, metadata={"user": "ann"}, message_topic="chat") as websocket:
        assert await received(websocket) == "welcome"
        await websocket.send("one")
        assert await received(websocket) == "heard one"
        await websocket.send(b"two")
        assert await received(websocket) == b"owt"
        node.send(pid, "three", [3])
        node.send(pid, "spawn", "four")
        await until(lambda: len(exits.results) == 1, "what it has spawned is over")
    async with joined(front, pid) as websocket:
        assert await received(websocket) == "welcome"
        await websocket.send("end")
        assert await received(websocket) == "heard end"
        assert await closed(websocket) == (1000, "target process exited")
    assert (await exits.of(pid)).value == [
        ["start", ["blue"], {"size": 3}, 0],
        ["join", {"user": "ann"}, True, 1],
        ["text", "one"],
        ["binary", b"two"],
        ["three", [3]],
        ["EXIT", "four"],
        ["leave", 1000, "", False, 0],
        ["join", {}, True, 1],
        ["text", "end"],
    ]


@BOTH
async def test_heartbeats_and_a_cancel_have_hooks(node: Node, front: str, face: str) -> None:
    exits = Exits(node)
    pid = node.spawn(getattr(room_classes.Diary, face))
    async with joined(front, pid, heartbeat_interval="20ms") as websocket:
        assert [await received(websocket), await received(websocket)] == ["welcome", "beat"]
        node.cancel(pid, "enough")
        assert await closed(websocket) == (1000, "target process exited")
    _, _, beat, *others, stop = (await exits.of(pid)).value
    assert beat == ["heartbeat", True, 0]
    assert [other for other in others if other != beat] == []
    assert stop == ["stop", "enough"]


@BOTH
async def test_a_room_that_ends_because_it_is_empty_is_told_so(node: Node, face: str) -> None:
    exits = Exits(node)
    pid = node.spawn(getattr(room_classes.Diary, face))
    node.send(pid, "options", {"end_when_empty": 0})
    assert (await exits.of(pid)).value[1:] == [["stop", "end_when_empty"]]


@BOTH
async def test_broken_links_and_errors_of_the_relay_have_hooks(
    node: Node, front: str, face: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(getattr(room_classes.Troubled, face))
    async with joined(front, pid):
        assert (await exits.of(pid)).value == [["LINK_DOWN", "error"], ["ws.error", "ws.close"]]


@BOTH
async def test_json_goes_to_the_method_of_its_tag_and_is_told_to_others(
    node: Node, front: str, face: str
) -> None:
    pid = node.spawn(getattr(room_classes.Talk, face))
    async with joined(front, pid) as one, joined(front, pid) as other:
        await other.send('{"type": "add", "numbers": [1, 2]}')
        assert [await received(other), await received(other)] == ["3", b"added"]
        assert await received(one) == b"added"
        await one.send('{"type": "say", "text": "hi"}')
        assert json.loads(await received(other)) == {"said": "hi"}
        wrong = {
            '{"type": "say"}': "the client sent a 'say' that does not fit: Object missing requi",
            '{"type": "add", "numbers": ["x"]}': "Expected `int`, got `str` - at `$.numbers[0]`",
            '{"type": "sing"}': "JSON whose 'type' is 'sing', and none of 'say', 'add'",
            '{"text": "hi"}': "JSON whose 'type' is None, and none of 'say', 'add'",
            "[]": "JSON whose 'type' is None, and none of 'say', 'add'",
            "hello": "the client sent text that is no JSON (",
            "[" * 10_000: "the client sent text that is no JSON (maximum recursion depth exceeded",
            '{"type": "' + 10_000 * "x" + '", "type": "say"}': f"Invalid value '{'x' * 400}",
        }
        for text, expected in wrong.items():
            await one.send(text)
            told = json.loads(await received(one))
            assert told["type"] == "error"
            assert expected in told["error"]
            assert len(told["error"]) < 600
        await one.send(b"\0")
        assert "binary data, which the room does not take" in str(await received(one))


@BOTH
async def test_text_that_no_method_takes_goes_to_on_text_unless_its_tag_is_known(
    node: Node, front: str, face: str
) -> None:
    pid = node.spawn(getattr(room_classes.TalkOrText, face))
    async with joined(front, pid) as websocket:
        for text in ('{"type": "say", "text": "hi"}', '{"type": "sing"}', "hello", "3", "["):
            await websocket.send(text)
        answers = [await received(websocket) for _ in range(5)]
        assert answers == ["said hi", 'other {"type": "sing"}', "other hello", "other 3", "other ["]
        await websocket.send('{"type": "say", "text": 3}')
        answer = await received(websocket)
        assert answer == (
            "InvalidMessage: the client sent a 'say' that does not fit: "
            "Expected `str`, got `int` - at `$.text`"
        )


@BOTH
async def test_metadata_is_converted_at_the_join_and_whenever_it_is_replaced(
    node: Node, front: str, face: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(getattr(room_classes.Members, face))
    ann, cyd = {"name": "ann"}, {"name": "cyd", "level": 7}
    async with joined(front, pid, metadata=cyd) as other:
        assert json.loads(await received(other)) == [["cyd", 7]]
        async with joined(front, pid, metadata=ann) as websocket:
            assert json.loads(await received(websocket)) == [["cyd", 7], ["ann", 0]]
            await websocket.send("rename")
            assert await received(websocket) == "ann"
            await websocket.send("?")
            assert await received(websocket) == "bob"
        assert (await exits.of(pid)).value == ["bob", 1000, ""]


@BOTH
@pytest.mark.parametrize("metadata", [{"name": 3}, {"level": 1}, None])
async def test_a_client_whose_metadata_does_not_convert_is_closed_and_the_log_says_why(
    node: Node, front: str, face: str, metadata: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pid = node.spawn(getattr(room_classes.Members, face))
    async with joined(front, pid, metadata={"name": "ann"}) as other:
        await received(other)
        async with joined(front, pid, metadata=metadata) as websocket:
            with contextlib.suppress(ConnectionClosed):
                await websocket.send("rename")
            assert await closed(websocket) == (1011, "unusable metadata")
        await until(lambda: len(node.connections) == 1)
        await other.send("?")
        assert await received(other) == "ann"
        assert pid in node.workers
        (line,) = [line for line in caplog.messages if "is closed" in line]
        assert "metadata is no User: " in line
        assert line.endswith(f"in {metadata or {}}")
        await other.send("spoil")
        assert await received(other) == "ann"
        with contextlib.suppress(ConnectionClosed):
            await other.send("?")
        assert await closed(other) == (1011, "unusable metadata")


@BOTH
async def test_ticks_come_while_somebody_is_there_or_always(
    node: Node, front: str, face: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(getattr(room_classes.Ticking, face))
    async with joined(front, pid) as websocket:
        assert [await received(websocket) for _ in range(3)] == ["tick"] * 3
    order = (await exits.of(pid)).value
    there = order[order.index("join") : order.index("leave")]
    assert there.count("tick") == order.count("tick") >= 3
    assert there.count("always") > 0


@BOTH
async def test_a_message_passes_between_two_ticks_that_are_always_due(
    node: Node, face: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(getattr(room_classes.Busy, face))
    for number in range(10):
        node.send(pid, "number", number)
    order = (await exits.of(pid)).value
    assert [one for one in order if one != "tick"] == list(range(10))
    first = order.index(0)
    assert order[first : first + 19] == [one for number in range(9) for one in (number, "tick")] + [
        9
    ]


@BOTH
async def test_a_cancelled_room_takes_what_is_queued_without_ticks_and_stops(
    node: Node, face: str, tmp_path: Path
) -> None:
    exits = Exits(node)
    go = tmp_path / "go"
    pid = node.spawn(getattr(room_classes.Stopping, face), None, str(go))
    for number in range(5):
        node.send(pid, "number", [number, bytes(60_000)])
    node.cancel(pid, "enough")
    go.touch()
    order, reason = (await exits.of(pid)).value
    assert reason == "enough"
    assert [one for one in order if one != "tick"] == list(range(5))
    assert order[-2:] == [3, 4]


@BOTH
async def test_what_takes_from_a_room_is_refused_inside_it(node: Node, face: str) -> None:
    errors = (await Exits(node).of(node.spawn(getattr(room_classes.Curious, face)))).value
    assert errors == [
        f"RoomReceives: process.{call} would take from the room what goes to its hooks: use {use}"
        for call, use in {
            "inbox": "on_join, on_text, on_message and the other hooks",
            "events": "on_event(event)",
            "incoming": "on_message(message), on_event(event) and the other hooks",
            "listen": 'a method with @on("topic")',
            "select": "the hooks",
            "ticks": "a method with @every(seconds)",
        }.items()
    ]


@BOTH
@pytest.mark.parametrize("where", ["on_start", "on_join", "on_text", "tick"])
async def test_an_exception_in_a_hook_ends_the_room_as_it_ends_a_function(
    node: Node, front: str, face: str, where: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(getattr(room_classes.Failing, face), None, where)
    if where != "on_start":
        async with joined(front, pid) as websocket:
            if where == "on_text":
                await websocket.send("hello")
            assert await closed(websocket) == (1011, "target process crashed")
    error = await exits.error(pid)
    assert (error.kind, error.message) == ("error", f"ZeroDivisionError: {where}")
    assert error.traceback is not None
    assert "wsrelay/room.py" not in error.traceback
    assert "wsrelay/aio/room.py" not in error.traceback


@BOTH
async def test_a_message_that_nothing_takes_is_logged_once(
    node: Node, face: str, caplog: pytest.LogCaptureFixture
) -> None:
    pid = node.spawn(getattr(room_classes.Talk, face))
    for topic in ("notice", "ws.error", "notice", "other", "notice"):
        node.send(pid, topic)
    await until(lambda: "'other'" in caplog.text, "the log")
    told = [line.partition("room: ")[2] for line in caplog.messages if "is dropped" in line]
    me, more = node.pid(), "and no on_message (told once)"
    assert told == [
        f"'notice' of {me} is dropped: there is no @on('notice') {more}",
        f"'other' of {me} is dropped: there is no @on('other') {more}",
    ]


async def test_while_a_hook_waits_no_other_is_called(node: Node) -> None:
    exits = Exits(node)
    pid = node.spawn(room_classes.Waiting)
    for number in range(5):
        node.send(pid, "number", number)
    order = (await exits.of(pid)).value
    assert order[::2] == order[1::2]
    assert [one for one in order[::2] if one != "tick"] == list(range(5))


async def test_tasks_run_beside_the_hooks_and_are_cancelled_before_the_end(
    node: Node, front: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(room_classes.Streams)
    async with joined(front, pid) as websocket:
        await websocket.send("a")
        assert [await received(websocket) for _ in range(3)] == ["a"] * 3
        await websocket.send("b")
        while await received(websocket) != "b":
            pass
        await websocket.send("stop a")
        while await received(websocket) != "stopped":
            pass
        assert [await received(websocket) for _ in range(3)] == ["b"] * 3
        node.cancel(pid, "enough")
        assert await closed(websocket) == (1000, "target process exited")
    assert (await exits.of(pid)).value == [
        "a stopped",
        "b stopped",
        "enough",
        "RuntimeError: the room is not running: its tasks have been cancelled",
    ]


async def test_the_exception_of_a_task_ends_the_room_even_in_the_middle_of_a_hook(
    node: Node, front: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(room_classes.Streams)
    async with joined(front, pid) as websocket:
        await websocket.send("a")
        await websocket.send("crash")
        assert await closed(websocket) == (1011, "target process crashed")
    error = await exits.error(pid)
    assert (error.kind, error.message) == ("error", "ZeroDivisionError: in a task")
    assert error.traceback is not None
    assert error.traceback.splitlines()[1].startswith(f'  File "{room_classes.__file__}"')


async def test_a_task_can_end_a_room_that_waits_and_others_are_cancelled(
    node: Node, front: str
) -> None:
    exits = Exits(node)
    pid = node.spawn(room_classes.Streams)
    async with joined(front, pid) as websocket:
        await websocket.send("a")
        assert await received(websocket) == "a"
        await websocket.send("end")
        assert await closed(websocket) == (1000, "target process exited")
    assert (await exits.of(pid)).value == "ended by a task"


# A class as a target

FILE = room_classes.__file__


@BOTH
@pytest.mark.parametrize("target", ["class", "script", "module"])
async def test_a_class_is_a_target_like_a_function(
    node: Node, front: str, face: str, target: str
) -> None:
    name = {"sync": "PlainRoom", "aio": "AioRoom"}[face]
    given: Any = {
        "class": getattr(room_classes, name),
        "script": f"{FILE}:{name}",
        "module": f"room_classes:{name}",
    }[target]
    pid = node.get_or_spawn("room:blue", given, None, "hello")
    assert node.get_or_spawn("room:blue", given, None, "other") == pid
    async with joined(front, pid) as websocket:
        assert await received(websocket) == "hello"


@BOTH
async def test_a_header_names_a_class_as_it_names_a_function(node: Node, face: str) -> None:
    target = {"sync": room_classes.PlainRoom, "aio": room_classes.AioRoom}[face]
    answer = RelayResponse(target=target, name="room:red", args=["hello"])
    async with (
        serving(WebSocketRelay(endpoint(lambda _: answer), node=node)) as url,
        client(url) as one,
        client(url) as other,
    ):
        assert [await received(one), await received(other)] == ["hello", "hello"]
        assert len(node.workers) == 1
    with pytest.raises(RelayRefused, match="is a class, but not a subclass of"):
        RelayResponse(target=room_classes.NoRoom)


async def test_a_class_that_is_no_room_is_refused(node: Node) -> None:
    error = (
        "class, but not a subclass of wsrelay.Room or wsrelay.aio.Room; write a function that us"
    )
    for given in (room_classes.NoRoom, dict):
        with pytest.raises(InvalidTarget, match=f"target {given.__qualname__} is a {error}"):
            node.spawn(given)
    exits = Exits(node)
    ended = await exits.error(node.spawn(f"{FILE}:NoRoom"))
    assert ended.kind == "start_failed"
    assert error in ended.message
    assert ended.traceback is None


# Calls, and groups


async def asked(pid: str, topic: str, payload: Any = None) -> Any:
    """The answer to a call, or its error."""
    try:
        return await aio_process.call(pid, topic, payload, timeout=TIMEOUT)
    except WsrelayError as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


@BOTH
async def test_a_room_answers_calls_and_refuses_what_does_not_fit(node: Node, face: str) -> None:
    pid = node.spawn(getattr(room_classes.Asked, face))
    assert await asked(pid, "count") == 0
    assert await asked(pid, "total", [1, 2]) == {"total": 3}
    assert [await asked(pid, "greet"), await asked(pid, "greet", "ann")] == [
        "hello you",
        "hello ann",
    ]
    assert await asked(pid, "positive", 3) == 3
    assert await asked(pid, "whatever", {"a": 1}) == [{"a": 1}]
    assert await asked(pid, "whatever") == [None]
    refused: list[tuple[str, Any, str]] = [
        ("count", 3, f"'count' of Asked.{face} takes no payload"),
        ("total", ["x"], "the payload of 'total' is no list[int]: Expected `int`, got `str` - at"),
        ("total", None, "the payload of 'total' is no list[int]: Expected `array`, got `null`"),
        ("positive", 0, "the payload of 'positive' is no typing.Annotated[int, "),
        ("greet", "nobody", "nobody is here"),
        (
            "noted",
            None,
            f"Asked.{face} does not answer 'noted', but 'count', 'total', 'positive', ",
        ),
        ("on_event", None, f"Asked.{face} does not answer 'on_event', but 'count', 'total', 'po"),
    ]
    for topic, payload, error in refused:
        assert (await asked(pid, topic, payload)).startswith(f"CallError: {error}")
    assert await asked(pid, "crash") == "ProcessError: ZeroDivisionError: on purpose"
    other = node.spawn(getattr(room_classes.Asked, face))
    assert (await asked(other, "no_data")).startswith(
        "ProcessError: PayloadError: payload: builtins"
    )
    assert await asked(node.spawn(getattr(room_classes.Diary, face)), "count") == (
        f"CallError: Diary.{face} does not answer 'count', nor anything else"
    )


@BOTH
async def test_a_room_watches_groups(node: Node, face: str) -> None:
    here = node.spawn(getattr(room_classes.Diary, face))
    node.join_group("friends", here, "first")
    pid = node.spawn(getattr(room_classes.Asked, face), None, "friends", "others")
    while not await asked(pid, "watched"):
        pass
    node.join_group("others", here, None)
    node.leave_group("friends", here)
    while len(seen := await asked(pid, "watched")) < 3:
        pass
    assert seen == [
        ["joined", here, "first"],
        ["joined", here, None],
        ["left", here, "first"],
    ]
    errors = (await Exits(node).of(node.spawn(getattr(room_classes.Unwatching, face)))).value
    assert errors == [
        f"TypeError: Unwatching.{face} has no on_event, to which watch('group') would go",
        (
            "RoomReceives: process.groups.watch would take from the room what goes to its hooks: "
            "use self.watch(group), which goes to on_event(event)"
        ),
    ]


async def test_an_annotation_that_cannot_be_converted_to_ends_the_room_at_its_start(
    node: Node,
) -> None:
    error = await Exits(node).error(node.spawn(room_classes.Unresolved))
    assert error.message == (
        "TypeError: Unresolved: ask(payload: 'Nowhere') cannot convert a payload: "
        "name 'Nowhere' is not defined"
    )


@pytest.mark.parametrize("how", ["thread", "signal"])
@pytest.mark.parametrize(
    "target", [room_classes.EndsFromOutside, room_classes.EndsFromOutsideWithTicks]
)
async def test_a_thread_can_make_calls_and_it_or_a_signal_handler_ends_a_room_that_waits(
    node: Node, how: str, target: Any
) -> None:
    other = node.spawn(room_classes.Asked.sync)
    assert (await Exits(node).of(node.spawn(target, None, how, other))).value == how


async def test_a_client_stays_the_same_where_an_event_loop_reads_for_the_room(
    node: Node, front: str
) -> None:
    pid = node.spawn(room_classes.BesideALoop, None, node.spawn(room_classes.Asked.sync))
    async with joined(front, pid, metadata={"name": "ann"}) as websocket:
        for text in ("one", "two"):
            await websocket.send(text)
            assert await received(websocket) == f"{text} 1 True"
