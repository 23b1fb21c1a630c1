"""What hostile workers make the node keep: each attempt is refused or bounded."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import rooms
from exits import Exits
from hostile import next_one, own_pipe
from one_node import left_as_found
from support import (
    client,
    end_of,
    endpoint,
    not_reading,
    processes,
    relay_to,
    room,
    send_until_blocked,
    serving,
    until,
    value_of,
)

from wsrelay import (
    ExitKind,
    HostOptions,
    InvalidName,
    InvalidPID,
    InvalidTarget,
    Member,
    Node,
    PayloadError,
    ProcessError,
    RelayResponse,
    Result,
    TooMany,
    WebSocketRelay,
    process,
    wire,
)
from wsrelay.kernel import Kernel
from wsrelay.node import engine, requests
from wsrelay.node.host import Incarnation, Intake, NodePipe, Unfinished, lanes
from wsrelay.values.message import ExitError, reason_of, sendable
from wsrelay.values.pid import LONGEST, PID, address
from wsrelay.values.sizes import ITEM
from wsrelay.wire import payload
from wsrelay.wire.pipe_pair import Duplex

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


KB = 1024
MB = 1024 * 1024
ME = PID("{local@processes|1}")
OTHER = PID("{local@other|2}")
CLIENT = PID("{local@gateway|3}")
NIL = payload.pack(None)


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
    to = node.spawn(room(rooms.echo))
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
    app = WebSocketRelay(relay_to(node.spawn(room(rooms.echo))), node=node, outbox_limit=64 * MB)
    async with serving(app) as url, client(url) as websocket:
        [pid] = await until(lambda: list(node.connections))
        relay: Any = node.connection(pid)
        not_reading(websocket)
        for _ in range(40):
            node.send(pid, "ws.send", {"type": "binary", "data": bytes(MB)})
        results: list[Result] = []
        worker = node.spawn(drain_often, None, str(pid), 6)
        node.when_ended(worker, results.append)
        await until(lambda: len(relay._when_drained) == 5, "five of them wait")
        node.send(worker, "go on")
        await until(lambda: results, "it has ended")
        assert results == [Result(["TooMany", "drain limit of 5 reached"])]
        assert not relay._when_drained
        websocket.transport.abort()


def says_that_it_takes_all() -> None:
    """Take nothing, not even joins, and acknowledge everything that comes."""
    pipe, total = own_pipe(), 0
    data = wire.AttachFrame | wire.RelayFrame | wire.DetachFrame
    while True:
        frames = pipe.read(None)
        total += sum(size for frame, size in frames if isinstance(frame, data))
        pipe.write(wire.AckFrame(total))


async def test_what_a_client_sends_to_a_process_that_reads_no_join_is_kept_up_to_128_kilobytes(
    node: Node,
) -> None:
    def answer(_: Any) -> RelayResponse:
        return RelayResponse(target=says_that_it_takes_all, name="liar", end_when_empty=0)

    app = WebSocketRelay(endpoint(answer), node=node)
    async with serving(app) as url, client(url) as websocket:
        await send_until_blocked(websocket, bytes(30 * KB))
        [connection] = node.clients.connections.values()
        assert 4 <= connection.message_count <= 6
        relay: Any = connection
        assert wire.WINDOW <= relay._session._claim.size <= wire.WINDOW + 31 * KB
        websocket.transport.abort()
    node.terminate("liar")


def forge_a_receipt(client: str) -> None:
    own_pipe().write(wire.JoinReadFrame(client))
    process.groups.members("")  # an answer comes behind all that went before


def forge_options(seconds: float) -> None:
    own_pipe().write(wire.OptionsFrame(trap_links=False, end_when_empty=seconds))
    process.inbox().receive(20)


async def test_receipts_for_others_clients_are_nothing_and_options_that_are_none_are_garbage(
    node: Node,
) -> None:
    def answer(_: Any) -> RelayResponse:
        return RelayResponse(target=says_that_it_takes_all, name="honest")

    async with serving(WebSocketRelay(endpoint(answer), node=node)) as url, client(url):
        [relay] = await until(lambda: [*node.clients.connections.values()])
        held: Any = relay
        await value_of(node, forge_a_receipt, relay.pid)
        assert held._session._claim is not None
        node.terminate("honest")
    for forge, what in ((forge_a_receipt, "{oops"), (forge_options, -1), (forge_options, math.nan)):
        error = (await end_of(node, forge, what)).error
        assert error is not None
        assert error.message.startswith("killed: it wrote garbage on its pipe")


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
    end = kernel.unregister if what == "name" else lambda g: kernel.groups.leave(g, CLIENT)
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
    result = await end_of(node, name_others, node.spawn(room(rooms.echo)), what)
    if what == "name":
        assert result == Result(said)
    else:
        assert result.error == ExitError(ExitKind.LIMIT, said)


def join_with_much(size: int, times: int) -> str:
    for number in range(times):
        process.groups.join(f"group {number}", meta=bytes(size))
    return str(len(process.groups.members("group 0")))  # it comes behind all that went before


async def test_metadata_that_processes_give_themselves_counts_for_their_host(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrelay.kernel.ledger.MOST_FOR_OTHERS", 100 * KB)
    assert await end_of(node, join_with_much, 40 * KB, 2) == Result("1")
    said = "group (metadata, host processes) limit of 100KB reached"
    assert (await end_of(node, join_with_much, 40 * KB, 3)).error == ExitError(ExitKind.LIMIT, said)
    assert not node.kernel.ledger


def join_past_the_encoder(content: bytes) -> list[Any]:
    watch = process.groups.watch("g")
    own_pipe().write(wire.JoinGroupFrame("g", str(process.pid()), content))
    return [watch.receive(20).meta, [member.meta for member in process.groups.roster("g")]]


@pytest.mark.parametrize("content", [b"\xc1", b"\1\2", b"\x91" * 5000, b"\xc7\x01\x05x"])
async def test_metadata_that_is_no_data_is_none_where_it_is_read(
    node: Node, content: bytes
) -> None:
    assert await value_of(node, join_past_the_encoder, content) == [None, [None]]
    pid = node.spawn(next_one)
    node.kernel.join_group("g", pid, meta=content)
    assert node.roster("g") == [Member(pid)]


# On the way to a worker


@pytest.fixture
def flooded() -> list[bool]:
    """What the pipe has told of an overflow."""
    return []


@pytest.fixture
async def pipe(flooded: list[bool]) -> AsyncIterator[NodePipe]:
    """A pipe to a worker that takes nothing."""
    ours, theirs = Duplex.pair()
    pipe = NodePipe(ours, lambda _: None, lambda _: None, lambda: flooded.append(True))
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


async def test_events_that_nobody_reads_count_for_what_they_take(
    pipe: NodePipe, flooded: list[bool]
) -> None:
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
    monkeypatch.setattr(lanes, "_RESULTS", 3 * MB)
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
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_MOST_CODE", 3 * MB)
    exits, host, check = Exits(node), node._templates["processes"], node.engine._check_code
    checked: list[int] = []

    def note(parent: PID, size: int) -> None:
        checked.append(size)
        check(parent, size)

    pid = node.spawn(run_large, None, MB, 4)
    with monkeypatch.context() as waiting:  # for their turn, as if too many were started
        waiting.setattr(host, "_launch_pending", lambda: None)
        waiting.setattr(node.engine, "_check_code", note)
        await until(lambda: len(checked) == 4, "all have been asked for")
    host._launch_pending()
    told = (await exits.of(pid)).value
    refused = "start failed: arguments (of processes that have not started) limit of 3MB reached"
    assert sorted({*told}) == ["ran", refused]
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

    pid = node.spawn(room(rooms.echo))
    for number in range(1000):
        node.register(f"name {number:04}", pid)
    [shown] = describe(node).processes
    assert shown.names == [f"name {number:04}" for number in range(100)]
