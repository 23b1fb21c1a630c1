"""Messages of one process as they pass."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rooms
from controlled import wsrelay
from ending import idles
from one_node import left_as_found
from support import TIMEOUT, client, received, relay_to, room, serving, until

from wsrelay import PID, Node, WebSocketRelay, process
from wsrelay.control import ControlClient, ControlSocket, NodeGone
from wsrelay.control.looking import Traces
from wsrelay.node.info import TraceRecord
from wsrelay.node.taps import Taps
from wsrelay.node.trace import Trace

pytestmark = pytest.mark.anyio


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WSRELAY_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
async def controlled(shared: Node, directory: Path) -> AsyncIterator[Node]:
    async with left_as_found(shared), ControlSocket(shared, directory):
        yield shared


class Reader:
    """Reads a trace, and keeps what it has read."""

    def __init__(self, traces: Traces, of: str, **query: Any) -> None:
        self.records: list[TraceRecord] = []
        self._trace = traces.begin({"of": of, **{key: str(it) for key, it in query.items()}})
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for record in self._trace:
            self.records.append(record)

    @property
    def seen(self) -> list[tuple[str, str, str]]:
        """Direction, topic and peer of the messages."""
        return [(one.direction, one.topic, one.peer) for one in self.records if not one.note]

    def is_shown_something(self) -> bool:
        return bool(self.seen)

    @property
    def notes(self) -> list[str]:
        return [one.note for one in self.records if one.note]


@contextlib.asynccontextmanager
async def tracing(traces: Traces, of: str, **query: Any) -> AsyncIterator[Reader]:
    reader = Reader(traces, of, **query)
    try:
        await until(lambda: reader.records, "it looks")
        yield reader
    finally:
        reader.reading.cancel()
        await asyncio.wait([reader.reading])


def chatter(other: str) -> None:
    """Answer clients, send to another process in each way, and answer calls."""
    for message in process.inbox():
        match message.topic:
            case "ws.message":
                process.send(message.sender, "ws.send", {"type": "text", "data": "pong"})
            case "tell":
                process.send(other, "told", message.payload)
                process.send([other, other], "both")
                process.groups.join("crowd")
                process.groups.broadcast("crowd", "all", [1])
            case "ask":
                message.reply({"asked": message.payload})
            case "call":
                process.call(other, "question", 7)


def replies() -> None:
    for message in process.inbox():
        if message.wants_reply:
            message.reply("answer")


@pytest.fixture
def traces(controlled: Node) -> Traces:
    return Traces(controlled)


async def test_messages_to_and_from_a_process_are_shown_with_their_peers(
    controlled: Node, traces: Traces
) -> None:
    other = controlled.spawn(replies)
    controlled.register("other", other)
    pid = controlled.spawn(chatter, None, "other")
    me = str(controlled.pid())
    relay = WebSocketRelay(relay_to(pid), node=controlled)
    async with serving(relay) as url, client(url) as one:
        await one.send("early")
        await received(one)
        [connection] = controlled.connections
        async with tracing(traces, pid, payload=1) as reader:
            await one.send("ping")
            assert await received(one) == "pong"
            controlled.send(pid, "tell", {"a": [1, b"\0"]})
            await until(lambda: ("in", "all", pid) in reader.seen)
            assert await controlled.call_async(pid, "ask", "x" * 2_000, 60.0)
            controlled.send(pid, "call")
            await until(lambda: reader.seen[-1][:2] == ("in", "answer"))
            await one.close(3000, "bye")
            await until(lambda: reader.seen[-1][1] == "ws.leave")
    assert reader.seen == [
        ("in", "ws.message", connection),
        ("out", "ws.send", connection),
        ("in", "tell", me),
        ("out", "told", "other"),
        ("out", "both", "other"),
        ("out", "all", "group crowd"),
        ("in", "all", pid),
        ("in", "ask", me),
        ("out", "answer", me),
        ("in", "call", me),
        ("out", "question", "other"),
        ("in", "answer", ""),
        ("in", "ws.leave", connection),
    ]
    messages = [one for one in reader.records if not one.note]
    assert [one.payload for one in messages[:6]] == [
        '"ping"',
        '"pong"',
        '{"a":[1,"AA=="]}',
        '{"a":[1,"AA=="]}',
        "null",
        "[1]",
    ]
    assert [one.size for one in messages[:2]] == [4, 4]
    assert messages[4].others == 1
    long = messages[7]
    assert long.payload is not None
    assert long.payload == '"' + "x" * 1023 + "..."
    assert long.size == 2_003
    assert messages[-1].payload == '{"code":3000,"reason":"bye"}'


async def test_nothing_is_left_of_a_trace(controlled: Node, traces: Traces) -> None:
    pid = controlled.spawn(chatter, None, "nobody")
    engine = controlled.engine
    async with serving(WebSocketRelay(relay_to(pid), node=controlled)) as url, client(url) as one:
        await one.send("ping")
        await received(one)
        [connection] = controlled.connections

        def hooks() -> Any:
            pipe, session = engine.processes[pid].pipe, _session(controlled, connection)
            return (
                [*vars(pipe)],
                vars(pipe)["_receive"],
                [type(engine.endpoints[it]) for it in (pid, connection)],
                session._hear,
                engine.ends.watchers,
            )

        before = hooks()
        async with (
            tracing(traces, pid) as first,
            tracing(traces, pid) as second,
            tracing(traces, connection) as third,
        ):
            await one.send("ping")
            await received(one)
            await until(lambda: all(len(it.seen) == 2 for it in (first, second, third)))
            assert hooks() != before
        assert hooks() == before
        assert first.seen == second.seen
        await one.send("ping")
        assert await received(one) == "pong"
        assert _session(controlled, connection).head, "it goes the short way again"


def _session(node: Node, pid: PID) -> Any:
    connection: Any = node.connection(pid)
    return connection._session


async def test_messages_keep_their_order_while_traces_come_and_go(
    controlled: Node, traces: Traces
) -> None:
    pid = controlled.spawn(room(rooms.echo))
    looks, sent, got = 0, list[str](), list[str | bytes]()
    async with serving(WebSocketRelay(relay_to(pid), node=controlled)) as url, client(url) as one:
        [connection] = controlled.connections

        async def look() -> None:
            nonlocal looks
            while True:
                for of in (pid, connection):
                    async with tracing(traces, of, count=10, payload=1) as reader:
                        await until(reader.is_shown_something)
                    looks += 1

        looking = asyncio.create_task(look())
        while looks < 8:
            more = [str(len(sent) + number) for number in range(100)]
            for text in more:
                await one.send(text)
            got += [await received(one) for _ in more]
            sent += more
        looking.cancel()
        await asyncio.wait([looking])
    assert got == sent
    assert not controlled.engine.ends.watchers


async def test_messages_from_and_to_a_client_are_shown(controlled: Node, traces: Traces) -> None:
    pid = controlled.spawn(chatter, None, "nobody")
    controlled.register("room", pid)
    for front_end in ("direct", "uvicorn"):
        relay = WebSocketRelay(relay_to(pid), node=controlled)
        async with serving(relay, front_end) as url, client(url) as one:
            await one.send("early")
            await received(one)
            [connection] = controlled.connections
            async with tracing(traces, connection, payload=1) as reader:
                await one.send("päng")
                await received(one)
                await one.send(b"\1\2")
                await received(one)
                await until(lambda: len(reader.seen) == 4)
                controlled.send(connection, "score", {"goals": 2})
                await received(one)
                await one.close()
                await until(reader.reading.done)
        assert reader.seen == [
            ("out", "ws.message", pid),
            ("in", "ws.send", pid),
            ("out", "ws.message", pid),
            ("in", "ws.send", pid),
            ("in", "score", controlled.pid()),
        ]
        messages = [one for one in reader.records if not one.note]
        assert [one.payload for one in messages] == [
            '"päng"',
            '"pong"',
            '"AQI="',
            '"pong"',
            '{"goals":2}',
        ]
        assert [one.size for one in messages[:3]] == [5, 4, 2]
        assert messages[0].names == ["room"]
        assert reader.notes[-1].startswith(f"{connection} has ended; `wsrelay ends ")


async def test_one_that_waits_is_shown_from_before_its_start(
    controlled: Node, traces: Traces
) -> None:
    first = controlled.spawn_as("only one", obstinate)
    assert await controlled.started(first) is None
    controlled.cancel(first)
    second = controlled.spawn_as("only one", chatter, None, ("nobody",))
    assert controlled.kernel.processes[second].state.value == "waiting"
    async with tracing(traces, second) as reader:
        controlled.send(second, "tell", 1)
        controlled.terminate(first)
        await until(lambda: ("in", "all", second) in reader.seen)
        controlled.cancel(second, "enough")
        await until(reader.reading.done)
    assert reader.seen[0] == ("in", "tell", controlled.pid())
    assert reader.seen[1] == ("out", "told", "nobody")
    assert reader.seen[-1] == ("in", "CANCEL", controlled.pid())


def obstinate() -> None:
    while True:
        time.sleep(0.1)


async def test_a_trace_ends_by_itself_at_each_bound(controlled: Node, traces: Traces) -> None:
    pid = controlled.spawn(idles)
    async with tracing(traces, pid, count=3) as reader:
        for _ in range(5):
            controlled.send(pid, "tell")
        await until(reader.reading.done)
    assert len(reader.seen) == 3
    assert reader.notes[-1] == "3 messages were shown"
    trace = Trace(controlled, Taps(controlled), pid, contents=False, count=9, seconds=0.01)
    async with asyncio.timeout(TIMEOUT):
        records = [record async for record in trace.records()]
    assert records[-1].note == "0.01 s are over"
    assert "post" not in vars(controlled.engine.processes[pid].pipe)
    async with tracing(traces, pid) as reader:
        traces.end()
        await until(reader.reading.done)
    assert reader.notes[-1] == "the node ends"


async def test_a_flood_is_left_out_and_counted_and_takes_little_memory(
    controlled: Node, traces: Traces
) -> None:
    pid = controlled.spawn(idles)
    assert await controlled.started(pid) is None
    async with tracing(traces, pid, count=1_000_000, payload=1) as reader:
        for number in range(3_000):
            controlled.send(pid, "flood", number)
        await until(lambda: len(reader.seen) >= 1_000)

        def is_shown_again() -> bool:
            controlled.send(pid, "after")
            return reader.records[-1].topic == "after"

        await until(is_shown_again)
        before = len(reader.notes)
        for number in range(5_000):  # a reader that keeps up is not shown all of it either
            controlled.send(pid, "flow", number)
            if number % 100 == 0:
                await asyncio.sleep(0)
        await until(is_shown_again)
        assert [note for note in reader.notes[before:] if note.endswith(" not shown")]
    shown = [one.payload for one in reader.records if one.topic == "flood"]
    assert shown == [str(number) for number in range(len(shown))]
    [note] = [note for note in reader.notes if note.endswith(" not shown")][:1]
    assert int(note.split()[0]) >= 3_000 - len(shown)


async def test_nobody_reads_and_the_trace_goes_with_the_connection(
    controlled: Node, directory: Path
) -> None:
    pid = controlled.spawn(idles)
    [socket] = directory.glob("*.sock")
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(f"GET /trace?of={pid.id} HTTP/1.1\r\nHost: node\r\n\r\n".encode())
    await reader.readuntil(b"messages of ")
    assert "post" in vars(controlled.engine.processes[pid].pipe)
    writer.close()
    await writer.wait_closed()
    await until(lambda: "post" not in vars(controlled.engine.processes[pid].pipe))


async def test_a_reader_is_told_that_the_node_ends(shared: Node, directory: Path) -> None:
    async with left_as_found(shared):
        pid = shared.spawn(idles)
        async with ControlSocket(shared, directory):
            [socket] = directory.glob("*.sock")
            reader, writer = await asyncio.open_unix_connection(socket)
            writer.write(f"GET /trace?of={pid.id} HTTP/1.1\r\nHost: node\r\n\r\n".encode())
            await reader.readuntil(b"messages of ")
        async with asyncio.timeout(TIMEOUT):
            rest = await reader.read()
        assert b'"note":"the node ends","last":true}' in rest
        writer.close()
        await writer.wait_closed()


async def test_the_command_prints_messages_and_why_it_ends(controlled: Node) -> None:
    pid = controlled.spawn(idles)
    controlled.register("room", pid)
    printed = asyncio.create_task(wsrelay("trace", "room", "--payload", "--count", "2"))
    await until(lambda: "post" in vars(controlled.engine.processes[pid].pipe))
    controlled.send(pid, "to\x1bpic", {"text": "\x1b[31mred"})
    controlled.send(pid, "second", "x" * 2_000)
    first, second = (await printed).splitlines()
    assert re.fullmatch(
        rf"[\d:.]{{12}} <- {re.escape(controlled.pid())}  to\\x1bpic  15B  "
        r'{"text":"\\u001b\[31mred"}',
        first,
    )
    assert second.endswith("xxx...")
    said = await wsrelay("trace", "room", "--for", "10ms")
    assert said == ""
    assert "is not" in await wsrelay("trace", "room", "--count", "0", code=2)


async def test_a_node_that_is_killed_is_told_by_the_command(tmp_path: Path) -> None:
    """What the node said before it went is printed, and then that it has gone."""
    (tmp_path / "run").mkdir(mode=0o700)
    sock = tmp_path / "run" / "local-1.sock"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        line = msgspec.json.encode(TraceRecord(time=0.0, topic="tell", direction="in")) + b"\n"
        writer.write(b"%x\r\n%s\r\n" % (len(line), line))
        writer.close()

    async with await asyncio.start_unix_server(answer, sock):
        with pytest.raises(NodeGone, match=f"the node at {re.escape(str(sock))} has gone"):
            await asyncio.to_thread(list, ControlClient(sock).trace("room"))
