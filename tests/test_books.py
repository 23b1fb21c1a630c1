"""What hostile workers make the node decode, keep and do: each attempt is refused or bounded."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import typing
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import msgspec
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw
from support import client, end_of, processes, received, relay_to, room, serving, until, value_of

from wsrelay import (
    ExitKind,
    HostOptions,
    InvalidName,
    InvalidPID,
    InvalidTarget,
    Node,
    PayloadError,
    ProcessError,
    Result,
    TooMany,
    WebSocketRelay,
    aio,
    process,
    wire,
)
from wsrelay.errors import WireError
from wsrelay.kernel import Kernel
from wsrelay.node import engine, requests, router
from wsrelay.node.host import Incarnation, Intake, NodePipe, Unfinished
from wsrelay.node.host import pipe as pipes
from wsrelay.session import command
from wsrelay.values.message import ExitError, reason_of, sendable
from wsrelay.values.pid import LONGEST, PID, address
from wsrelay.values.sizes import ITEM
from wsrelay.wire import payload
from wsrelay.wire.pipe_pair import Duplex

pytestmark = pytest.mark.anyio

KB = 1024
MB = 1024 * 1024
ME = PID("{local@processes|1}")
OTHER = PID("{local@other|2}")
CLIENT = PID("{local@gateway|3}")
NIL = payload.pack(None)

KINDS: list[type[wire.Frame]] = list(typing.get_args(wire.FromWorker))
named = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def bomb(elements: int) -> bytes:
    """Many empty arrays in one: a byte each, and 56 and a pointer once they are decoded."""
    return b"\xdd" + struct.pack(">I", elements) + b"\x90" * elements


def own_pipe() -> Any:
    """The pipe of this worker, for what its functions would not write."""
    return process._worker().pipe


# What the node decodes


def unbounded(kind: Any) -> list[str]:
    """What in a field's type has no bound of its own."""
    if kind in (int, bool, bytes, Raw, type(None)) or typing.get_origin(kind) is Literal:
        return []  # numbers have 64 bits, bytes are not decoded
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        inner, meta = arguments
        rest = unbounded(*typing.get_args(inner)) if typing.get_origin(inner) is list else []
        return rest if meta.max_length else [str(kind)]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [why for field in msgspec.structs.fields(kind) for why in unbounded(field.type)]
    if kind is ExitKind:
        return []
    if arguments and origin is not dict and origin is not list:
        return [why for argument in arguments for why in unbounded(argument)]
    return [str(kind)]


@named
def test_all_that_the_node_decodes_of_a_frame_is_bounded_in_its_type(
    kind: type[wire.Frame],
) -> None:
    assert [why for field in msgspec.structs.fields(kind) for why in unbounded(field.type)] == []


@pytest.mark.parametrize("kind", [str, Any, list[str], dict[str, int], str | None])
def test_types_without_a_bound_are_found(kind: Any) -> None:
    assert unbounded(kind)


def plain(kind: Any, filler: Any) -> Any:
    """The parts of a frame as plain data, each text and list in it the filler."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return filler
    if isinstance(kind, type) and issubclass(kind, wire.Frame):
        parts = [plain(field.type, filler) for field in msgspec.structs.fields(kind)]
        return [kind.__struct_config__.tag, *parts]
    if kind is wire.WorkerError:
        return {"kind": "error", "message": filler, "traceback": filler}
    if origin is Literal:
        return arguments[0]
    if arguments:
        return plain(arguments[0], filler)
    return {int: 1, bool: True, bytes: b"", Raw: {}}[kind]


@named
@pytest.mark.parametrize(
    "filler",
    ["x" * 3 * MB, "\U0001f600" * MB, [""] * 3 * MB, [[]] * 3 * MB, ["{local@x|1}"] * 300_000],
    ids=["text", "wide text", "texts", "arrays", "receivers"],
)
def test_a_frame_that_is_much_once_it_is_decoded_is_refused_before(
    kind: type[wire.Frame], filler: Any
) -> None:
    body = msgspec.msgpack.encode(plain(kind, filler))
    if len(body) < MB:
        return  # it has nothing that could be much
    data = len(body).to_bytes(4, "big") + body
    reader = wire.from_worker()
    del body, filler
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            reader.feed(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(data) + MB, "there are its bytes, a copy of them, and nothing else"


@pytest.mark.parametrize("size", [10, 50 * KB, 5 * MB])
def test_a_payload_is_not_looked_at_on_its_way(size: int) -> None:
    for content in (bomb(size), b"\x91" * size, b"\xc1" * size):
        frame = wire.SendFrame("somebody", "topic", content)
        [(read, _)] = wire.from_worker().feed(wire.pack(frame))
        assert read == frame


DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.datetimes()
    | st.text() | st.binary()
    | st.sampled_from([0, 1, 31, 32, 255, 256, 65535, 65536]).map(bytes)
    | st.sampled_from([0, 31, 32, 255, 256, 65535, 65536]).map(lambda size: "x" * size),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
)  # fmt: skip


def count(data: Any) -> tuple[int, int]:
    """Elements, and bytes of bytes objects."""
    if isinstance(data, bytes):
        return 1, len(data)
    inner = data if isinstance(data, list) else []
    if isinstance(data, dict):
        inner = [*data.keys(), *data.values()]
    counts = [count(one) for one in inner]
    return 1 + sum(elements for elements, _ in counts), sum(size for _, size in counts)


@settings(deadline=None, max_examples=60)
@given(DATA)
def test_the_size_of_what_is_decoded_is_known_before(data: Any) -> None:
    packed = payload.pack(data)
    elements, size = count(data)
    assert payload.size_to_decode(packed, elements) == len(packed) - size
    with pytest.raises(ValueError, match="more than"):
        payload.size_to_decode(packed, elements - 1)


@given(st.binary(max_size=30))
def test_the_size_of_any_bytes_is_told(data: bytes) -> None:
    assert payload.size_to_decode(data, 30) >= 0


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_payload_is_decoded_for_a_client_up_to_a_million_elements(beyond: int) -> None:
    content = (
        b"\xdd"
        + struct.pack(">I", payload.MOST_ELEMENTS - 1 + beyond)
        + b"\1" * (payload.MOST_ELEMENTS - 1 + beyond)
    )
    parsed = command.parse("news", content)
    if beyond:
        assert parsed == command.InvalidCommand("news", "it has more than 1,048,576 elements")
    else:
        assert isinstance(parsed, command.SendCommand)


@pytest.mark.parametrize("topic", ["ws.control", "ws.close"])
def test_an_order_to_a_connection_has_256_kilobytes_and_16384_elements_at_most(topic: str) -> None:
    key = {"ws.control": "message_topic", "ws.close": "reason"}[topic]
    content = payload.pack({key: "x" * 256 * 1024})
    assert command.parse(topic, content) == command.InvalidCommand(
        topic,
        f"it has {len(content)} bytes, at most 262144 are allowed; let the process itself keep "
        "larger data, by client_pid",
    )
    many = payload.pack({"metadata": {"all": [[]] * 16_384}})
    assert command.parse(topic, many) == command.InvalidCommand(
        topic, "it has more than 16,384 elements"
    )


def test_a_message_topic_has_at_most_a_thousand_characters() -> None:
    parsed = command.parse("ws.control", payload.pack({"message_topic": "x" * (LONGEST + 1)}))
    assert parsed == command.InvalidCommand(
        "ws.control", "message_topic has 1001 characters, at most 1000 are allowed"
    )


def send_bomb(to: str) -> str:
    process.send(to, "news", [[]] * 5_000_000)
    error: str = process.inbox().receive(20).payload["error"]
    return error


async def test_five_megabytes_of_empty_arrays_for_a_client_stay_that_in_the_node(
    node: Node,
) -> None:
    app = WebSocketRelay(relay_to(node.spawn(room("echo"))), node=node)
    async with serving(app) as url, client(url) as websocket:
        [to] = await until(lambda: list(node.connections))
        before = psutil.Process().memory_info().rss
        peak = before

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, psutil.Process().memory_info().rss)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        said = await value_of(node, send_bomb, str(to))
        watching.cancel()
        assert said == "it has more than 1,048,576 elements"
        assert peak - before < 64 * MB, "it was 388 MB"
        await websocket.send("still here")
        assert await received(websocket) == "still here"


@pytest.mark.parametrize("value", [b"\xc1", b"\x91" * 5000, b"", b"\xc7\x01\x05x"])
async def test_a_result_that_is_no_data_is_none_where_it_is_read(node: Node, value: bytes) -> None:
    assert await value_of(node, watch_one_who_says, value) == repr(Result(None))


def watch_one_who_says(value: bytes) -> str:
    def hostile(value: bytes) -> None:
        import os  # noqa: PLC0415 - it travels by value

        own_pipe().write(wire.DoneFrame(value, None, 0, []))
        os._exit(0)

    process.spawn_monitored(hostile, None, value)
    return repr(process.events().receive(20).result)


def send_past_payload(to: str, content: bytes) -> None:
    own_pipe().write(wire.SendFrame(to, "odd", content))
    process.send(to, "right", "data")


def next_one() -> Any:
    return process.inbox().receive(20).payload


@pytest.mark.parametrize("content", [b"\xc1", b"\1\2", b"\x91" * 5000, b""])
async def test_a_payload_that_is_no_data_harms_neither_node_nor_receiver(
    node: Node, content: bytes
) -> None:
    results: list[Result] = []
    to = node.spawn(next_one)
    node.when_ended(to, results.append)
    assert (await end_of(node, send_past_payload, to, content)).error is None
    await until(lambda: results, "the receiver has ended")
    assert results == [Result("data")]


# Many receivers


@pytest.mark.parametrize("count_", [0, 1, 245, 246, 9_999, 10_000, 10_001, 25_000])
def test_receivers_go_into_as_many_frames_as_it_takes(count_: int) -> None:
    receivers = [f"room {number}" for number in range(count_)]
    portions = list(wire.portions(receivers))
    assert [one for portion in portions for one in portion] == receivers
    assert len(portions) == max(1, -(-count_ // wire.MAX_RECEIVERS))


@pytest.mark.parametrize("name", ["x" * LONGEST, "\U0001f600" * LONGEST], ids=["ascii", "wide"])
def test_each_portion_of_long_names_fits_into_a_frame(name: str) -> None:
    for portion in wire.portions([name] * 5_000):
        data = wire.pack_request(wire.SendFrame(portion, "t" * LONGEST, bytes(5 * MB)))
        assert wire.from_worker().feed(data)


def send_to_many(me: str) -> list[str]:
    process.send([me, *(f"nobody {number}" for number in range(25_000)), me], "many", "x")
    process.send(me, "one", "y")
    return [process.inbox().receive(20).topic for _ in range(3)]


async def send_to_many_in_a_loop() -> list[str]:
    me = aio.process.pid()
    many = [*(f"nobody {number}" for number in range(25_000)), me]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(aio.process.send(many, "many", "x"))
        tasks.create_task(aio.process.send(me, "one", "y"))
    return [(await aio.process.inbox().receive(20)).topic for _ in range(2)]


def send_to_many_of_mine() -> list[str]:
    return send_to_many(process.pid())


async def test_a_message_for_more_than_ten_thousand_arrives_in_its_order(node: Node) -> None:
    assert await value_of(node, send_to_many_of_mine) == ["many", "many", "one"]
    assert await value_of(node, send_to_many_in_a_loop) == ["many", "one"]
    assert node.dead_letters == 50_000


def write_to_too_many() -> None:
    body = msgspec.msgpack.encode([1, [""] * 25_000_000, "t", b""])
    own_pipe().ends.write_all(len(body).to_bytes(4, "big") + body)
    threading.Event().wait()


async def test_a_frame_for_millions_ends_its_writer(node: Node) -> None:
    error = (await end_of(node, write_to_too_many)).error
    assert error is not None
    assert "killed: it wrote garbage on its pipe" in error.message
    assert "it has more than 10,100 elements" in error.message


# Turns


class Other:
    """Whoever else waits for the event loop: notes when it had its turn."""

    def __init__(self, seen: list[Any]) -> None:
        self._seen = seen
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._seen.append("other")
        self._handle = self._loop.call_soon(self._turn)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._handle.cancel()


def without_others(seen: list[Any]) -> list[Any]:
    return [one for one in seen if one != "other"]


def alternates(seen: list[Any]) -> bool:
    """Whether the other had a turn between any two that were done."""
    done = [index for index, one in enumerate(seen) if one != "other"]
    return all("other" in seen[a:b] for a, b in itertools.pairwise(done))


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_TURN", 0.0)


shortest_turns = pytest.mark.usefixtures("no_time")


@pytest.fixture
async def flood() -> AsyncIterator[tuple[Duplex, list[wire.FromWorker]]]:
    """A pipe's end with a flood of small frames in it."""
    ours, theirs = Duplex.pair()
    frames: list[wire.FromWorker] = [wire.AckFrame(number) for number in range(1000)]
    theirs.write_all(b"".join(map(wire.pack, frames)))
    with theirs:
        yield ours, frames


Flood = tuple[Duplex, list[wire.FromWorker]]


@shortest_turns
async def test_a_flood_of_small_frames_leaves_all_others_their_turns(flood: Flood) -> None:
    ours, frames = flood
    seen: list[Any] = []
    with Other(seen):
        pipe = NodePipe(ours, seen.append, seen.append, lambda: None)
        await until(lambda: len(without_others(seen)) == len(frames), "all were received")
        pipe.close()
    assert without_others(seen) == frames
    # The first two may share a turn, in which there is no first time to compare with.
    assert alternates(seen[seen.index(frames[1]) :])


@shortest_turns
async def test_a_hold_and_its_release_in_the_middle_of_a_flood_lose_nothing(flood: Flood) -> None:
    ours, frames = flood
    seen: list[Any] = []

    def receive(frame: wire.FromWorker) -> None:
        seen.append(frame)
        if len(seen) % 100 == 0:
            held.hold("client")
            asyncio.get_running_loop().call_later(0.001, held.release, "client")

    held = NodePipe(ours, receive, seen.append, lambda: None)
    await until(lambda: len(seen) == len(frames), "all were received")
    held.close()
    assert seen == frames


@shortest_turns
async def test_what_the_dead_left_comes_in_turns_too_and_before_its_end(flood: Flood) -> None:
    ours, frames = flood
    seen: list[Any] = []
    with Other(seen):
        pipe = NodePipe(ours, seen.append, seen.append, lambda: None)
        pipe.hold("a client that does not read")
        pipe.finish(lambda: seen.append("over"))
        await until(lambda: "over" in seen, "all was taken in")
    assert without_others(seen) == [*frames, "over"]
    assert alternates(seen[seen.index(frames[1]) : seen.index("over")])


@shortest_turns
async def test_what_is_to_be_taken_in_at_once_waits_for_no_turn(flood: Flood) -> None:
    ours, frames = flood
    seen: list[Any] = []
    pipe = NodePipe(ours, seen.append, seen.append, lambda: None)
    pipe.finish(lambda: seen.append("over"))
    assert len(seen) < len(frames)
    pipe.take_in_at_once()
    assert seen == [*frames, "over"]


@shortest_turns
async def test_what_a_frame_makes_work_in_portions_leaves_others_their_turns(flood: Flood) -> None:
    """Also while the pipe is held, and the next frame comes behind all of it."""
    ours, frames = flood
    seen: list[Any] = []

    def receive(frame: wire.FromWorker) -> Iterator[None] | None:
        seen.append(frame)
        if frame == frames[10]:
            pipe.hold("client")
            return work()
        return None

    def work() -> Iterator[None]:
        for number in range(50):
            seen.append(number)
            yield

    with Other(seen):
        pipe = NodePipe(ours, receive, seen.append, lambda: None)
        await until(lambda: 49 in seen, "the work is done")
        pipe.release("client")
        await until(lambda: len(without_others(seen)) == len(frames) + 50, "all is received")
        pipe.close()
    assert without_others(seen) == [*frames[:11], *range(50), *frames[11:]]
    assert alternates(seen[seen.index(0) : seen.index(49) + 1])


def tell_many_and_end(to: str) -> None:
    process.send([*(f"nobody {number}" for number in range(5_000)), to], "last words", 0)


def hear_and_watch() -> list[str]:
    me = process.pid()

    def tell() -> None:
        tell_many_and_end(me)

    process.spawn_monitored(tell)
    process.events().receive(20)
    return [process.inbox().receive(0).topic]


@shortest_turns
async def test_messages_to_many_come_before_the_exit_of_their_sender(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "_PORTION", 10)
    assert await value_of(node, hear_and_watch) == ["last words"]


@shortest_turns
async def test_a_node_that_ends_does_not_leave_turns_behind() -> None:
    """Nor does it wait for those of a worker that floods it up to its end."""

    def flood() -> None:
        while True:
            process.send("nobody", "flood", None)

    async with Node(hosts=[processes(stop_timeout=0.2)]) as node:
        await node.started(node.spawn(flood))
        await until(lambda: node.dead_letters > 1000, "it floods")


# What the node keeps


def test_a_reason_is_cut_at_a_thousand_characters() -> None:
    assert reason_of("x" * LONGEST) == "x" * LONGEST
    cut = reason_of("x" * 20 * MB)
    assert len(cut) == LONGEST
    assert cut.endswith("xxx... (20971520 characters)")


def hear_why() -> str:
    return process.events().receive(20).reason


def cancel_at_length(to: str) -> None:
    process.cancel(to, "why " * 5 * MB)


@pytest.mark.parametrize("by", ["node", "worker"])
async def test_a_long_reason_ends_nobody_and_is_cut(node: Node, by: str) -> None:
    results: list[Result] = []
    to = node.spawn(hear_why)
    node.when_ended(to, results.append)
    await node.started(to)
    if by == "node":
        node.cancel(to, "why " * 5 * MB)
    else:
        assert (await end_of(node, cancel_at_length, to)).error is None
    await until(lambda: results, "it has ended")
    assert results == [Result(reason_of("why " * 5 * MB))]


def test_texts_that_are_too_long_are_told_at_the_caller() -> None:
    long = "x" * (LONGEST + 1)
    with pytest.raises(PayloadError, match=r"topic: 'xxx.* has 1001 characters, at most 1000 are"):
        sendable(long)
    with pytest.raises(InvalidName, match="it has more than 1000 characters"):
        address(long)
    with pytest.raises(InvalidPID):
        PID(f"{{local@host|{long}}}")


def say_too_much() -> list[str]:
    long = "x" * (LONGEST + 1)
    told = []
    for call in (
        lambda: process.send(long, "topic"),
        lambda: process.send("room", long),
        lambda: process.listen(long),
        lambda: process.groups.broadcast("room", long),
        lambda: process.groups.broadcast(long, "topic"),
        lambda: process.registry.register(long),
        lambda: process.registry.lookup(long),
        lambda: process.get_or_spawn(long, next_one),
        lambda: process.monitor(f"{{local@host|{long}}}"),
        lambda: process.spawn(f"{'x' * 9000}.py"),
    ):
        try:
            call()
            told.append("nothing")
        except Exception as error:  # noqa: BLE001 - told by its name
            told.append(type(error).__name__)
    return told


async def test_a_worker_is_told_of_texts_that_are_too_long_and_lives(node: Node) -> None:
    assert await value_of(node, say_too_much) == [
        "InvalidName", "PayloadError", "PayloadError", "PayloadError", "PayloadError",
        "InvalidName", "PayloadError", "InvalidName", "InvalidPID", "InvalidTarget",
    ]  # fmt: skip


async def test_more_than_a_frame_holds_is_told_at_the_caller_on_the_node_too(node: Node) -> None:
    to = node.spawn(room("echo"))
    with pytest.raises(PayloadError, match="are more than a message may hold, 67108864"):
        node.send(to, "large", bytes(wire.MAX_FRAME + 1))
    with pytest.raises(PayloadError, match="are more than a message may hold, 67108864"):
        node.broadcast("group", "large", bytes(wire.MAX_FRAME + 1))
    with pytest.raises(PayloadError, match="are more than a message may hold, 67108864"):
        node.spawn(next_one, None, bytes(wire.MAX_FRAME + 1))
    with pytest.raises(InvalidTarget, match="9006 characters, at most 8192"):
        node.spawn(f"/{'x' * 9000}.py:f")


def drain_often(to: str, often: int) -> list[str]:
    pipe, mailbox = own_pipe(), process._worker().mailbox
    queues = [mailbox.expect(number) for number in range(1000, 1000 + often)]
    for number in range(1000, 1000 + often):
        pipe.write(wire.DrainFrame(number, to))
    _, refused = mailbox.take(*queues[-1:], timeout=20)
    process.send(to, "told")  # it waits for nothing any more, but its drains are there
    process.inbox().receive(60)
    return [refused.error, refused.message]


async def test_a_worker_waits_for_so_many_drains_and_takes_them_with_it(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MOST", 5)
    app = WebSocketRelay(relay_to(node.spawn(room("echo"))), node=node)
    async with serving(app) as url, client(url):
        [pid] = await until(lambda: list(node.connections))
        relay: Any = node.connection(pid)
        monkeypatch.setattr(type(relay), "_notify_drained", lambda _: None)  # it never is
        results: list[Result] = []
        worker = node.spawn(drain_often, None, str(pid), 6)
        node.when_ended(worker, results.append)
        await until(lambda: len(relay._when_drained) == 5, "five of them wait")
        node.send(worker, "go on")
        await until(lambda: results, "it has ended")
        assert results == [Result(["TooMany", "drain limit of 5 reached"])]
        assert not relay._when_drained


def spawn_in_vain(times: int) -> None:
    for _ in range(times):
        process.spawn(next_one)
    process.groups.members("")  # an answer comes behind all that went before


async def test_refused_starts_are_logged_ten_times_and_then_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Node(hosts=[processes(max_processes=1)]) as node:
        assert (await end_of(node, spawn_in_vain, 500)).error is None
    lines = [line for line in caplog.messages if "was not started: process host" in line]
    assert 10 <= len(lines) < 100


def crash() -> None:
    raise ZeroDivisionError("on purpose")


async def test_of_many_crashes_ten_have_their_traceback_in_the_log_and_each_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    began = time.monotonic()
    async with Node(hosts=[processes()]) as node:
        for _ in range(15):
            error = (await end_of(node, crash)).error
            assert error is not None
            assert error.traceback
    took = time.monotonic() - began
    lines = [line for line in caplog.messages if " crashed: " in line]
    told = [line for line in lines if "Traceback (most recent" in line]
    assert len(lines) == 15
    assert 10 <= len(told) <= 10 + took
    assert sum("the traceback is left out" in line for line in lines) == 15 - len(told)


async def test_what_was_not_told_of_refused_starts_is_counted_in_the_next_line() -> None:
    from wsrelay.node.mistake_log import MistakeLog  # noqa: PLC0415 - what this is about

    mistakes = MistakeLog()
    assert [mistakes.again(ME, 0.0) for _ in range(15)] == [0] * 10 + [None] * 5
    assert mistakes.again(OTHER, 0.0) == 0
    assert mistakes.again(ME, 1.0) == 5
    assert mistakes.again(ME, 2.0) == 0
    mistakes.forget(ME)
    assert mistakes.again(ME, 2.0) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="there are no pidfds")
async def test_who_is_given_up_before_its_fork_is_told_is_killed_whatever_it_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it left takes turns; the fork that was told meanwhile stayed, with its pidfd."""
    results: list[Any] = []
    incarnation = Incarnation(
        PID("{local@processes|1}"),
        1,
        HostOptions(),
        log=Intake("it", 100),
        received=lambda _: None,
        exited=results.append,
        about=dict,
        unfinished=Unfinished(),
    )
    finish: list[Any] = []
    monkeypatch.setattr(incarnation.pipe, "finish", finish.append)
    incarnation.failed(ExitError(ExitKind.KILLED, "SIGKILL"))
    with subprocess.Popen(["sleep", "60"]) as child:  # noqa: ASYNC220 - it is killed at once
        pidfd = os.pidfd_open(child.pid)
        incarnation.forked(child.pid, pidfd)
        assert child.wait(20) == -signal.SIGKILL
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)
    monkeypatch.undo()
    incarnation.pipe.finish(*finish)
    await until(lambda: results, "its end is told")


# Of others


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel in which a host may give others two names or memberships."""
    monkeypatch.setattr("wsrelay.kernel.ledger.MOST_FOR_OTHERS", 2 * (2 * ITEM + 10))
    kernel = Kernel({"processes": 10, "other": 10})
    kernel.spawn(ME)
    kernel.spawn(OTHER)
    kernel.connect(CLIENT)
    return kernel


def give(kernel: Kernel, what: str, name: str, pid: PID, asker: PID | None) -> None:
    (kernel.register if what == "name" else kernel.join_group)(name, pid, asker)


both = pytest.mark.parametrize("what", ["name", "group"])


@both
def test_names_and_groups_count_for_who_gives_them_too(kernel: Kernel, what: str) -> None:
    give(kernel, what, "first", CLIENT, ME)
    give(kernel, what, "second", CLIENT, ME)
    give(kernel, what, "second", CLIENT, ME)  # again is no change
    for name in ("third", "x" * 500):
        with pytest.raises(TooMany, match=rf"{what} \(of others, host processes\) limit of 532B"):
            give(kernel, what, name, CLIENT, ME)
    give(kernel, what, "third", CLIENT, OTHER)  # of another host
    give(kernel, what, "fourth", CLIENT, None)  # the node
    give(kernel, what, "its own", ME, ME)


@both
def test_names_and_groups_that_end_make_room_whoever_ends_them(kernel: Kernel, what: str) -> None:
    end = kernel.names.unregister if what == "name" else lambda g: kernel.groups.leave(g, CLIENT)
    for _ in range(3):
        give(kernel, what, "first", CLIENT, ME)
        give(kernel, what, "second", CLIENT, ME)
        end("first")
        end("second")
    give(kernel, what, "first", CLIENT, ME)
    give(kernel, what, "second", OTHER, ME)
    kernel.exited(ME, Result())  # who has given them is not who has them
    assert kernel.ledger
    kernel.exited(CLIENT, Result())
    kernel.exited(OTHER, Result())
    assert not kernel.ledger


def name_others(to: str, what: str) -> str:
    give_ = process.registry.register if what == "name" else process.groups.join
    try:
        for number in range(10):
            give_(f"{what} {number}", to)
        process.groups.members("")  # an answer comes behind all that went before
    except TooMany as error:
        return str(error)
    return "given"


@both
async def test_a_worker_that_names_others_without_end_is_told_or_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("wsrelay.kernel.ledger.MOST_FOR_OTHERS", 1000)
    said = f"{what} (of others, host processes) limit of 1000B reached"
    result = await end_of(node, name_others, node.spawn(room("echo")), what)
    if what == "name":
        assert result == Result(said)
    else:
        assert result.error == ExitError(ExitKind.LIMIT, said)


# On the way to a worker


@pytest.fixture
async def pipe() -> AsyncIterator[NodePipe]:
    """A pipe to a worker that takes nothing."""
    ours, theirs = Duplex.pair()
    pipe = NodePipe(ours, lambda _: None, lambda _: None, lambda: None)
    with theirs:
        yield pipe
        pipe.close()


async def test_messages_count_in_a_mailbox_for_what_they_take(pipe: NodePipe) -> None:
    pipe.queue(wire.DeliverFrame("t", str(ME), payload.pack(bytes(wire.WINDOW))), mail=True)
    frame = wire.DeliverFrame("t", str(ME), NIL)
    for _ in range(100):
        pipe.queue(frame, mail=True)
    assert pipe.mailbox == 100 * (len(wire.pack(frame)) + ITEM)
    pipe.taken(wire.WINDOW)
    assert pipe.mailbox == 0


async def test_events_that_nobody_reads_count_for_what_they_take(pipe: NodePipe) -> None:
    flooded: list[bool] = []
    pipe._flooded = lambda: flooded.append(True)
    event = wire.SignalFrame("EXIT", str(ME))
    size = len(wire.pack(event)) + ITEM
    while not pipe._out:
        pipe.post(event)
    for _ in range(16 * MB // size):
        pipe.post(event)
    assert flooded == []
    for _ in range(2):
        pipe.post(event)
    assert flooded == [True]


@pytest.mark.parametrize(
    ("ended", "left"),
    [
        (
            wire.PackedResult(payload.pack(bytes(MB))),
            ExitError(
                ExitKind.LIMIT,
                f"its result of {MB + 5} bytes is left out: 3MB of results wait for this process "
                "already",
            ),
        ),
        (
            wire.PackedResult(NIL, ExitError(ExitKind.ERROR, "ValueError: no", "x" * MB)),
            ExitError(ExitKind.ERROR, "ValueError: no"),
        ),
    ],
    ids=["value", "traceback"],
)
async def test_a_result_for_which_there_is_no_room_is_left_out_and_its_end_is_told(
    pipe: NodePipe, monkeypatch: pytest.MonkeyPatch, ended: wire.PackedResult, left: ExitError
) -> None:
    monkeypatch.setattr(pipes, "_RESULTS", 3 * MB)
    for number in range(10):
        pipe.post(wire.FinishedFrame(number, wire.PackedResult(ended.value, ended.error)))
    assert pipe._outgoing < 3 * MB
    [(told, _)] = wire.to_worker().feed(bytes(pipe._out[-1]))
    assert told == wire.FinishedFrame(9, wire.PackedResult(NIL, left))


def run_large(size: int, times: int) -> list[str]:
    """What so many calls of `exec` say whose processes wait for their turn to start."""
    told: list[str] = []

    def run() -> None:
        try:
            process.exec(len, None, bytes(size))
            told.append("ran")
        except ProcessError as error:
            told.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(told)


async def test_arguments_of_processes_that_wait_for_their_start_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "_MOST_CODE", 3 * MB)
    async with Node(hosts=[processes(spawn_rate=0.5)]) as node:
        told = await value_of(node, run_large, MB, 4)
        assert set(told) == {
            "ran",
            "start failed: arguments (of processes that have not started) limit of 3MB reached",
        }
        assert told.count("ran") > 1
        assert await value_of(node, run_large, MB, 1) == ["ran"]


def raise_at_length() -> None:
    raise ValueError("x" * 5 * MB)


async def test_an_error_s_line_and_its_traceback_are_told_in_64_kilobytes_each(node: Node) -> None:
    error = (await end_of(node, raise_at_length)).error
    assert error is not None
    assert len(error.message) < 66 * KB
    assert error.traceback is not None
    assert len(error.traceback) < 66 * KB


async def test_what_is_shown_of_a_process_has_a_hundred_of_its_names(node: Node) -> None:
    from wsrelay.node import describe  # noqa: PLC0415 - what this is about

    pid = node.spawn(room("echo"))
    for number in range(1000):
        node.register(f"name {number:04}", pid)
    [shown] = describe(node).processes
    assert shown.names == [f"name {number:04}" for number in range(100)]
