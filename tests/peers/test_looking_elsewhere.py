"""Commands that look at one process or client of another node, over a real NATS."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from nats_ports import cluster_of
from nats_servers import NatsServer
from operating import wsrelay
from support import client, closed, processes, relay_to, serving, until

from wsrelay import PID, Node, WebSocketRelay
from wsrelay.cli.following import _of_a_moment, follow_all
from wsrelay.control import ControlClient, NodeGone
from wsrelay.control.answers import PeerAnswers
from wsrelay.control.records import LogRecord
from wsrelay.node.info import TraceRecord

pytest_plugins = ["operated"]
pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("directory")]


@pytest.fixture
def asked(two: list[Node], directory: Path) -> ControlClient:
    del two
    [path] = directory.glob("a-*.sock")
    return ControlClient(path)


@pytest.fixture
async def pid(two: list[Node]) -> PID:
    """A process of the other node, with a name that this one knows."""
    a, b = two
    pid = await b.get_or_spawn_async("oracle", "answer")
    assert await b.started(pid) is None
    await until(lambda: a.engine.elsewhere.find("oracle") == pid, "its name is known")
    return pid


async def test_who_looks_at_a_process_of_another_node_need_not_say_which(
    two: list[Node], pid: PID
) -> None:
    part = pid.rpartition("|")[2].removesuffix("}")
    for text in ([pid], [pid.strip("{}")], ["oracle"], [part, "--cluster"]):
        assert (await wsrelay("stack", *text)).startswith(f"{pid} oracle answer, OS pid ")
        shown = json.loads(await wsrelay("show", *text, "--json"))
        assert shown["process"]["pid"] == pid
        assert "messages of " + pid in await wsrelay("trace", *text, "--for", "0s", "--json")
    [first, *_] = (await wsrelay("show", pid)).splitlines()
    assert first.split() == ["pid", f"{pid},", "running,", "OS", "pid", str(two[1].workers[pid])]
    for command in ("stack", "show", "trace"):
        said = await wsrelay(command, part, code=1)
        assert said == f"wsrelay: node a has no process '{part}'; --cluster looks on all nodes\n"
        said = await wsrelay(command, "nobody", "--cluster", code=1)
        assert said == "wsrelay: no node has a process 'nobody'\n"
        said = await wsrelay(command, "{b@processes|0-1}", code=1)
        assert said == "wsrelay: node b has no process '{b@processes|0-1}'\n"


async def test_who_looks_on_all_nodes_finds_it_whichever_node_is_named(
    two: list[Node], asked: ControlClient
) -> None:
    pid = two[0].spawn("answer")
    assert await two[0].started(pid) is None
    for one in (asked, asked.on("b")):
        assert (await asyncio.to_thread(one.process, pid.id, anywhere=True)).process.pid == pid
    with pytest.raises(ValueError, match="node b has no process"):
        await asyncio.to_thread(asked.on("b").process, pid.id)


async def test_a_client_of_another_node_is_shown_and_closed(
    two: list[Node], asked: ControlClient, pid: PID
) -> None:
    a, b = two
    async with serving(WebSocketRelay(relay_to(pid), node=b)) as url, client(url) as one:
        [connection] = b.connections
        shown = await asyncio.to_thread(asked.process, pid)
        assert [one.pid for one in shown.clients] == [connection]
        await wsrelay("close", str(connection), "--code", "4001", "--reason", "out")
        assert await closed(one) == (4001, "out")
        await until(lambda: not b.connections)
    [end] = b.engine.ends.connections()
    assert (end.how, end.by, end.code) == ("closed", a.pid(), 4001)
    [told] = await asyncio.to_thread(asked.on("b").connection_ends)
    assert told == end


# What goes on without end


async def read_on(trace: Generator[TraceRecord, None, None]) -> TraceRecord:
    return await asyncio.to_thread(next, trace)


async def test_messages_of_a_process_of_another_node_are_traced_as_they_pass(
    two: list[Node], asked: ControlClient, pid: PID
) -> None:
    with contextlib.closing(asked.trace(pid, contents=True, count=3)) as trace:
        assert (await read_on(trace)).note == f"messages of {pid} oracle"
        for number in range(3):
            two[1].send(pid, "say", number)
            record = await read_on(trace)
            assert (record.topic, record.payload) == ("say", f"{number}")
        end = await read_on(trace)
        assert (end.note, end.last) == ("3 messages were shown", True)


async def test_a_trace_of_a_node_that_is_lost_says_so(
    two: list[Node], asked: ControlClient, pid: PID
) -> None:
    with contextlib.closing(asked.trace(pid)) as trace:
        await read_on(trace)
        await two[1].aclose()
        while not (end := await read_on(trace)).last:
            pass
    assert end.note in {  # it depends on when it is asked for more
        f"{pid} has ended; `wsrelay ends {pid.id}` says how",
        "node b cannot be asked: it is gone",
        "node b has no control socket",
        "it has ended, as nobody has asked for it for a while",
    }


def fail(text: str) -> None:
    raise ValueError(text)


async def test_logs_of_other_nodes_are_followed(two: list[Node]) -> None:
    command = [sys.executable, "-m", "wsrelay", "logs", "--follow", "--node"]
    followers = [
        await asyncio.create_subprocess_exec(*command, *node, stdout=subprocess.PIPE)
        for node in (["b"], ["a", "--cluster"])
    ]
    for number in range(2):
        for node in two:
            node.spawn(fail, None, f"{node.name}{number}")
        for follower, names in zip(followers, (["b"], ["a", "b"]), strict=True):
            assert follower.stdout is not None
            wanted = {f"{name}{number}" for name in names}
            while wanted:
                line = (await follower.stdout.readline()).decode()
                wanted -= {one for one in wanted if line.endswith(f"crashed: ValueError: {one}\n")}
    for follower in followers:
        follower.terminate()
        await follower.wait()


async def test_logs_of_nodes_that_join_later_are_followed(nats: NatsServer) -> None:
    first, second = (cluster_of(nats, name="joined", node=one) for one in ("a", "b"))
    command = [sys.executable, "-m", "wsrelay", "logs", "--follow", "--node", "a", "--cluster"]
    async with Node(cluster=first):
        follower = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert follower.stdout is not None
        for number in range(2):
            async with Node(hosts=[processes()], cluster=second) as node:
                node.spawn(fail, None, str(number))
                while not (await follower.stdout.readline()).endswith(b"ValueError: %d\n" % number):
                    pass
        follower.terminate()
        await follower.wait()


class MadeUp:
    """A client of a cluster whose node `b` is asked again and again for its records."""

    def __init__(self, at: str, answers: list[list[float] | Exception]) -> None:
        self.at = at
        self.answers = answers

    def members(self) -> list[Any]:
        if not self.answers:
            raise NodeGone("the node that is asked has gone")
        return [SimpleNamespace(name="b", state="alive"), SimpleNamespace(name="c", state="dead")]

    def on(self, node: str) -> MadeUp:
        assert node == "b"
        return MadeUp(node, self.answers)

    def logs(self, of: str | None, *, follow: bool) -> Iterator[LogRecord]:
        assert (of, follow) == (None, True)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        for moment in answer:
            yield LogRecord(time=moment, level="info", pid=None, text=str(moment))


def test_a_node_that_is_followed_again_repeats_nothing_and_a_reason_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wsrelay.cli.following._MOMENT", 0.01)
    monkeypatch.setattr("wsrelay.cli.following._LOOK", 0.01)
    problems = [ValueError("full"), ValueError("full"), NodeGone("lost")]
    client: Any = MadeUp("", [[2, 1, 2], *problems, [1, 2, 3, 0.5]])
    times: list[float] = []
    with pytest.raises(NodeGone, match="has gone"):
        times.extend(record.time for record in follow_all(client, None))
    assert times == [1, 2, 2, 0.5, 3], "also what a clock that went back says"
    said = "wsrelay: the log records of node b are not known: "
    assert capfd.readouterr().err == f"{said}full\n{said}lost\n"


def test_what_comes_without_a_pause_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsrelay.cli.following._MOMENT", 0.01)
    numbers = itertools.takewhile(lambda number: number < 10_000_000, itertools.count())

    class Flood(SimpleQueue[int]):
        def get(self, *_: object, **__: object) -> int:
            return next(numbers)

    came = _of_a_moment(Flood(), 1)
    assert came == [*range(len(came))]


async def test_a_stream_waits_for_its_reader_and_ends_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wsrelay.control.answers._FULL", 10)
    ended = asyncio.Event()
    sent = 0

    async def app(scope: object, receive: object, send: object) -> None:
        nonlocal sent
        del scope, receive
        assert callable(send)
        try:
            await send({"type": "http.response.start", "status": 200})
            while True:
                await send({"type": "http.response.body", "body": b"12345678", "more_body": True})
                sent += 1
        finally:
            ended.set()

    answers = PeerAnswers(app)
    read = b""
    for number in range(3):
        status, content = await answers.answer("GET", f"/x?stream=1&portion={number}", b"", "b")
        assert status == 206
        assert 0 < len(content) <= 16
        read += content
    assert read == b"12345678" * (len(read) // 8)
    await until(lambda: sent == len(read) // 8 + 1, "it waits")
    with pytest.raises(ValueError, match="it has ended"):
        await answers.answer("GET", "/x?stream=2&portion=1", b"", "b")
    with pytest.raises(ValueError, match="it has ended"):  # of another node
        await answers.answer("GET", "/x?stream=1&portion=1", b"", "c")
    monkeypatch.setattr("wsrelay.control.answers._PATIENCE", 0.01)
    await answers.answer("GET", "/x?stream=1&portion=3", b"", "b")
    await ended.wait()
    with pytest.raises(ValueError, match="it has ended"):
        await answers.answer("GET", "/x?stream=1&portion=4", b"", "b")


async def test_others_follow_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsrelay.control.answers._MOST", 2)
    monkeypatch.setattr("wsrelay.control.answers._WAIT", 0.01)

    async def app(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    answers = PeerAnswers(app)
    for key in "12":
        assert await answers.answer("GET", f"/x?stream={key}", b"", "b") == (206, b"")
    with pytest.raises(ValueError, match="follow 2 logs and traces already"):
        await answers.answer("GET", "/x?stream=3", b"", "b")
    answers.end()
    assert await answers.answer("GET", "/x?stream=3", b"", "b") == (206, b"")
    answers.end()
    for path in ("/trace?of=x", "/logs?follow=1"):
        with pytest.raises(ValueError, match="without end: it is asked for in portions"):
            await answers.answer("GET", path, b"", "b")


async def test_a_stream_ends_whose_reader_is_lost_while_it_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wsrelay.control.answers._PATIENCE", 0.01)
    ended = asyncio.Event()

    async def app(*_: object) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    asked = asyncio.ensure_future(PeerAnswers(app).answer("GET", "/x?stream=1", b"", "b"))
    await asyncio.sleep(0)
    asked.cancel()
    await ended.wait()
