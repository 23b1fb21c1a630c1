"""What a worker can make the node keep is bounded: at, below and above each bound."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from support import processes, room, until

from wsrelay import (
    ExitKind,
    HostOptions,
    InvalidName,
    Node,
    PayloadError,
    Result,
    TooMany,
    WsrelayError,
    process,
    wire,
)
from wsrelay.errors import WireError
from wsrelay.kernel import Kernel
from wsrelay.node.host import NodePipe
from wsrelay.values import current
from wsrelay.values.pid import PID
from wsrelay.values.sizes import ITEM
from wsrelay.wire.pipe_pair import Duplex

pytestmark = pytest.mark.anyio

MB = 1024 * 1024
ME = PID("{local@processes|1}")


async def ending(node: Node, target: Any, *args: Any) -> Result:
    """How a process ends."""
    results: list[Result] = []
    node.when_ended(node.spawn(target, None, *args), results.append)
    await until(lambda: results, "the process has ended")
    return results[0]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """A small bound in place of 10,000."""
    for module in ("names", "groups", "relations"):
        monkeypatch.setattr(f"wsrelay.kernel.{module}.MOST", 5)
    return 5


def pids(count: int) -> list[PID]:
    return [PID(f"{{local@processes|{i + 10}}}") for i in range(count)]


@pytest.fixture
def kernel() -> Kernel:
    kernel = Kernel({"processes": 100})
    for pid in [ME, *pids(20)]:
        kernel.spawn(pid)
    return kernel


# In the kernel


@pytest.mark.parametrize("what", ["name", "group", "monitor", "link"])
def test_up_to_the_bound_all_is_kept_and_the_next_is_refused(
    kernel: Kernel, few: int, what: str
) -> None:
    add: Callable[[int], object] = {
        "name": lambda i: kernel.register(f"name {i}", ME),
        "group": lambda i: kernel.join_group(f"group {i}", ME),
        "monitor": lambda i: kernel.monitor(ME, pids(20)[i]),
        "link": lambda i: kernel.link(ME, pids(20)[i]),
    }[what]
    for i in range(few):
        add(i)
    with pytest.raises(TooMany, match=f"{what} limit of {few} reached"):
        add(few)
    add(0)  # what is there already is no more


def test_what_is_taken_back_makes_room(kernel: Kernel, few: int) -> None:
    for i in range(few):
        kernel.register(f"name {i}", ME)
        kernel.join_group(f"group {i}", ME)
        kernel.monitor(ME, pids(20)[i])
        kernel.link(ME, pids(20)[i])
    kernel.names.unregister("name 0")
    kernel.groups.leave("group 0", ME)
    kernel.relations.unmonitor(ME, pids(20)[0])
    kernel.relations.unlink(ME, pids(20)[0])
    kernel.register("another", ME)
    kernel.join_group("another", ME)
    kernel.monitor(ME, pids(20)[10])
    kernel.link(ME, pids(20)[10])


def test_a_process_that_others_watch_is_not_charged_for_it(kernel: Kernel, few: int) -> None:
    for watcher in pids(20)[: few + 5]:
        kernel.monitor(watcher, ME)


@pytest.mark.parametrize("name", ["x" * 1000, "ü" * 1000, "[/red]", " "])
def test_names_up_to_a_thousand_characters_are_taken(kernel: Kernel, name: str) -> None:
    kernel.register(name, ME)
    kernel.join_group(name, ME)


@pytest.mark.parametrize("name", ["x" * 1001, "", "{local"])
def test_other_names_are_refused(kernel: Kernel, name: str) -> None:
    with pytest.raises(InvalidName, match="is not a name"):
        kernel.register(name, ME)
    with pytest.raises(InvalidName, match="is not a name"):
        kernel.join_group(name, ME)


# From workers


def hoard(what: str, count: int) -> str:
    others = [process.spawn(idle) for _ in range(count)] if what in ("monitor", "link") else []
    try:
        for i in range(count):
            match what:
                case "name":
                    process.registry.register(f"name {i}")
                case "group":
                    process.groups.join(f"group {i}")
                case "monitor":
                    process.monitor(others[i])
                case "link":
                    process.link(others[i])
        process.groups.members("")  # an answer comes behind all that went before
    except WsrelayError as error:
        return f"{type(error).__name__}: {error}"
    return "kept"


def idle() -> None:
    for _ in process.inbox():
        pass


@pytest.mark.parametrize("what", ["name", "group", "monitor", "link"])
async def test_a_worker_may_have_as_many_as_the_bound(node: Node, few: int, what: str) -> None:
    assert await ending(node, hoard, what, few) == Result("kept")


async def test_a_worker_is_told_that_it_has_too_many_names(node: Node, few: int) -> None:
    result = await ending(node, hoard, "name", few + 1)
    assert result == Result("TooMany: name limit of 5 reached")


@pytest.mark.parametrize("what", ["group", "monitor", "link"])
async def test_a_worker_that_wants_more_without_asking_is_ended(
    node: Node, few: int, what: str
) -> None:
    error = (await ending(node, hoard, what, few + 1)).error
    assert error is not None
    assert (error.kind, error.message) == (ExitKind.LIMIT, f"{what} limit of 5 reached")


def join_badly() -> str:
    try:
        process.groups.join("x" * 1001)
    except InvalidName as error:
        return str(error)
    return "joined"


async def test_a_bad_group_name_is_an_error_where_it_is_used(node: Node) -> None:
    said = (await ending(node, join_badly)).value
    assert "has more than 1000 characters" in said


def ask_and_never_read() -> None:
    """Ask for replies past the channel that would read them."""
    pipe = current.caller().pipe  # type: ignore[attr-defined]
    process.registry.register("x" * 1000)
    while True:
        pipe.write(wire.LookupFrame(1, "no such name" + "y" * 900))


async def test_a_worker_that_asks_and_never_reads_is_ended(node: Node) -> None:
    before = psutil.Process().memory_info().rss
    error = (await ending(node, ask_and_never_read)).error
    assert error is not None
    assert error.kind is ExitKind.MAILBOX_OVERFLOW
    assert error.message == "killed: it asked for more replies and events than it reads"
    assert psutil.Process().memory_info().rss - before < 64 * MB


def watch_many_dead(count: int) -> int:
    """Half of what is let: none of it is read before all has been asked for."""
    for _ in range(count):
        process.monitor(DEAD)
    events = process.events()
    return sum(events.receive(10).kind == "EXIT" for _ in range(count))


DEAD = "{local@processes|gone}"


async def test_a_worker_that_reads_late_gets_all(node: Node) -> None:
    assert await ending(node, watch_many_dead, 20_000) == Result(20_000)


# Mailbox: bytes that other workers have sent


def flood(to: str, size: int, count: int) -> None:
    for _ in range(count):
        process.send(to, "data", bytes(size))


def read_when(go: str) -> int:
    while not Path(go).exists():
        time.sleep(0.01)
    return sum(len(message.payload) for message in process.inbox() if message.topic == "data")


@pytest.mark.parametrize(("count", "ends"), [(9, False), (12, True)])
async def test_a_mailbox_holds_its_limit_and_no_more(
    tmp_path: Path, count: int, *, ends: bool
) -> None:
    """Beyond the 128 KB and a frame that are on their way to the worker anyway."""
    async with Node(hosts=[processes(mailbox=10 * 100_000)]) as node:
        go = tmp_path / "go"
        results: list[Result] = []
        receiver = node.spawn(read_when, None, str(go))
        node.when_ended(receiver, results.append)
        await node.started(receiver)
        assert (await ending(node, flood, receiver, 100_000, count + 2)).error is None
        if ends:
            await until(lambda: results, "it has ended")
            error = results[0].error
            assert error is not None
            assert error.kind is ExitKind.MAILBOX_OVERFLOW
        else:
            assert node.engine.processes[receiver].pipe.mailbox > 8 * 100_000
            await asyncio.to_thread(go.touch)
            node.cancel(receiver)
            await until(lambda: results, "it has ended")
            assert results[0] == Result((count + 2) * 100_000)


# Log records


def chatter(count: int) -> None:
    log = logging.getLogger("chatter")
    for i in range(count):
        log.warning("line %d", i)


@pytest.mark.parametrize(("count", "lost"), [(49, 0), (50, 0), (1000, 949)])
async def test_so_many_log_records_pass_and_the_others_are_counted(
    caplog: pytest.LogCaptureFixture, count: int, lost: int
) -> None:
    async with Node(hosts=[processes(log_rate=50)]) as node:
        assert (await ending(node, chatter, count)).error is None
    lines = [line for line in caplog.messages if "chatter: line" in line]
    told = [line for line in caplog.messages if "were left out" in line]
    if not lost:
        assert (len(lines), told) == (count, [])
        return
    dropped = sum(int(line.split(": ")[1].split()[0]) for line in told)
    assert len(lines) + dropped == count, "each is written or counted"
    assert len(lines) >= 50
    assert "it writes more than 50 a second" in told[-1]


def chatter_on(lines: int) -> None:
    log = logging.getLogger("chatter")
    for i in range(lines):
        log.warning("line %d", i)
        time.sleep(0.001)


async def test_what_is_dropped_of_a_log_is_told_once_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Node(hosts=[processes(log_rate=100)]) as node:
        begin = time.monotonic()
        assert (await ending(node, chatter_on, 1000)).error is None
        seconds = time.monotonic() - begin
    told = [line for line in caplog.messages if "were left out" in line]
    assert 0 < len(told) <= seconds + 2, "the first, each second's, and the last at its end"


def write_much() -> None:
    logging.getLogger("much").warning("x" * 10 * MB)


async def test_a_long_record_is_cut(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    assert (await ending(node, write_much)).error is None
    [line] = [line for line in caplog.messages if "much: " in line]
    assert len(line) < 130 * 1024


# Spawns


async def test_spawns_beyond_the_rate_wait_and_all_come_to_life() -> None:
    host = processes(spawn_rate=20, stop_timeout=2.0)
    async with Node(hosts=[host]) as node:
        await node.loaded()
        began = time.monotonic()
        pids = [node.spawn(room("echo")) for _ in range(25)]
        started = 25 - len(node._templates["processes"]._pending)
        assert 20 <= started <= 20 + 20 * (time.monotonic() - began), "the burst is on its way"
        await until(lambda: all(node.workers[pid] for pid in pids), "all are forked")


async def test_one_that_waits_for_its_turn_can_be_ended() -> None:
    async with Node(hosts=[processes(spawn_rate=1)]) as node:
        await node.loaded()
        node.spawn(room("echo"))
        results: list[Result] = []
        waiting = node.spawn(room("echo"))
        node.when_ended(waiting, results.append)
        node.terminate(waiting)
        await until(lambda: results, "it has ended")
        error = results[0].error
        assert error is not None
        assert error.kind is ExitKind.TERMINATED


async def test_waiting_for_a_turn_ends_at_the_start_timeout() -> None:
    async with Node(hosts=[processes(spawn_rate=0.1, start_timeout=0.2)]) as node:
        await node.loaded()
        node.spawn(room("echo"))
        error = (await ending(node, room("echo"))).error
        assert error is not None
        assert error.kind is ExitKind.START_FAILED


@pytest.mark.parametrize("options", [{"spawn_rate": 0}, {"log_rate": 0.5}])
def test_rates_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="and must be"):
        HostOptions(**options)  # type: ignore[arg-type]


# On the way to a worker


def deliver(size: int) -> wire.DeliverFrame:
    """A frame of just so many bytes."""
    frame = wire.DeliverFrame("t", str(ME), msgspec.msgpack.encode(bytes(size - 1000)))
    return wire.DeliverFrame(
        "t",
        str(ME),
        msgspec.msgpack.encode(bytes(2 * size - 1000 - len(wire.pack(frame)))),
    )


@pytest.fixture
async def pipe() -> AsyncIterator[NodePipe]:
    """A pipe to a worker that takes nothing."""
    ours, theirs = Duplex.pair()
    pipe = NodePipe(ours, lambda _: None, lambda _: None, lambda: None)
    with theirs:
        yield pipe
        pipe.close()


KB = 1024


async def test_the_window_and_one_frame_are_on_their_way_and_the_rest_waits(pipe: NodePipe) -> None:
    assert len(wire.pack(deliver(4 * KB))) == 4 * KB
    for _ in range(31):
        pipe.queue(deliver(4 * KB))
    assert (pipe._in_flight, pipe.backlog) == (124 * KB, 0), "below the window"
    pipe.queue(deliver(4 * KB))
    assert (pipe._in_flight, pipe.backlog) == (128 * KB, 0), "at the window"
    pipe.queue(deliver(4 * KB))
    assert (pipe._in_flight, pipe.backlog) == (128 * KB, 4 * KB + ITEM), "above it"
    pipe.taken(4 * KB)
    assert (pipe._in_flight, pipe.backlog) == (128 * KB, 0)


async def test_one_frame_may_be_as_large_as_it_likes(pipe: NodePipe) -> None:
    pipe.queue(deliver(127 * KB))
    pipe.queue(deliver(MB))
    assert (pipe._in_flight, pipe.backlog) == (127 * KB + MB, 0)
    pipe.queue(deliver(4 * KB))
    assert pipe.backlog == 4 * KB + ITEM


async def test_clients_wait_from_64_kilobytes_of_backlog_on(pipe: NodePipe) -> None:
    pipe.queue(deliver(128 * KB))
    for _ in range(15):
        pipe.queue(deliver(4 * KB - ITEM))
    seen = [pipe.full]
    pipe.queue(deliver(4 * KB - ITEM - 1))
    seen.append(pipe.full)
    pipe.queue(deliver(4 * KB))
    seen.append(pipe.full)
    pipe.taken(128 * KB)
    seen.append(pipe.full)
    assert seen == [False, False, True, False], "below, a byte below, above, and with room again"


async def test_small_frames_count_as_what_they_cost(pipe: NodePipe) -> None:
    """Those that wait for room, mail among them, and answers that nobody reads."""
    pipe.queue(deliver(128 * KB))
    frame = wire.DeliverFrame("t", str(ME), msgspec.Raw(b"\xc0"))
    size = len(wire.pack(frame)) + ITEM
    for _ in range(100):
        pipe.queue(frame, mail=True)
    assert (pipe.backlog, pipe.mailbox) == (100 * size, 100 * size)
    pipe.taken(128 * KB)
    assert (pipe.backlog, pipe.mailbox) == (0, 0)
    reply = wire.ReplyFrame(1)
    for _ in range(100):
        pipe.post(reply)
    assert pipe._posted == 100 * (len(wire.pack(reply)) + ITEM), "behind what is being read"


async def test_who_waits_for_room_and_leaves_is_forgotten(pipe: NodePipe) -> None:
    told: list[str] = []
    for _ in range(50):
        pipe.queue(deliver(4 * KB))
    for _ in range(3):
        pipe.when_room("one", lambda: told.append("one"))
        pipe.when_room("other", lambda: told.append("other"))
    pipe.forget("one")
    assert len(pipe._when_room) == 1
    pipe.taken(64 * KB)
    assert told == ["other"]


@pytest.mark.parametrize("size", [-1, 4 * KB + 1, 1 << 60])
async def test_no_more_is_taken_than_was_sent(pipe: NodePipe, size: int) -> None:
    pipe.queue(deliver(4 * KB))
    with pytest.raises(WireError, match="were acknowledged, but 4096 were sent"):
        pipe.taken(size)
    pipe.taken(4 * KB)
    assert pipe._in_flight == 0


async def test_what_a_worker_writes_behind_a_hold_is_not_lost_at_its_release() -> None:
    """Whatever the event loop does first then, to read on or to take in what was held."""
    ours, theirs = Duplex.pair()
    received: list[wire.FromWorker] = []
    problems: list[str] = []

    def receive(frame: wire.FromWorker) -> None:
        received.append(frame)
        if len(received) == 1:
            held.hold("a client that does not read")

    with theirs:
        held = NodePipe(ours, receive, problems.append, lambda: None)
        frames = [wire.AckFrame(number) for number in range(4)]
        theirs.write_all(b"".join(map(wire.pack, frames[:2])))
        await until(lambda: received, "it is held behind the first")
        theirs.write_all(b"".join(map(wire.pack, frames[2:])))
        held.release("a client that does not read")
        held._readable()  # as uvloop does it
        await until(lambda: len(received) == len(frames) or problems, "all is there")
        held.close()
    assert (received, problems) == (frames, [])


@pytest.mark.parametrize("held", [False, True])
async def test_garbage_right_behind_a_frame_is_noticed_at_once(*, held: bool) -> None:
    ours, theirs = Duplex.pair()
    received: list[wire.FromWorker] = []
    problems: list[str] = []
    with theirs:
        pipe = NodePipe(ours, received.append, problems.append, lambda: None)
        theirs.write_all(
            wire.pack(wire.AckFrame(0)) + wire.pack(wire.ReadyFrame()) + b"\0\0\0\1\xc1"
        )
        if held:
            pipe.hold("token")
            pipe._readable()  # as if it had been read before the hold
            assert (received, problems) == ([], []), "nothing is received while it is held"
            pipe.release("token")
        await until(lambda: problems, "the garbage was noticed")
        assert received == [wire.AckFrame(0), wire.ReadyFrame()]
        assert ["1 bytes are not a frame" in problem for problem in problems] == [True]
        pipe.close()


async def test_what_may_overtake_waits_for_no_room(pipe: NodePipe) -> None:
    for _ in range(100):
        pipe.queue(deliver(4 * KB))
    before = pipe.backlog
    pipe.post(wire.SignalFrame("CANCEL", str(ME), "now"))
    assert pipe.backlog == before


@pytest.mark.parametrize(("beyond", "fits"), [(-1, True), (0, True), (1, False)])
def test_a_message_of_a_process_has_at_most_64_megabytes(beyond: int, *, fits: bool) -> None:
    def send(size: int) -> bytes:
        content = msgspec.msgpack.encode(bytes(size))
        return wire.pack_request(wire.SendFrame("room", "topic", content))

    overhead = len(send(MB)) - MB
    size = wire.MAX_FRAME - overhead + beyond
    assert wire.MAX_FRAME == 64 * MB
    if fits:
        assert len(send(size)) == wire.MAX_FRAME + beyond
    else:
        with pytest.raises(PayloadError, match="are more than a message may hold"):
            send(size)


def watch_large(size: int) -> list[int]:
    """The sizes of what three processes return, who are watched and run by `exec`."""

    def give(size: int) -> bytes:
        return bytes(size)

    for _ in range(2):
        process.spawn_monitored(give, None, size)
    sizes = [len(process.exec(give, None, size))]
    time.sleep(0.3)  # they wait for it together
    for event in process.events():
        assert event.result is not None
        sizes.append(len(event.result.value))
        if len(sizes) == 3:
            return sizes
    return sizes


@pytest.mark.parametrize("size", [17 * MB, 64 * MB - 300])
async def test_results_of_any_size_end_nobody_who_asked_for_them(node: Node, size: int) -> None:
    """All that a process can return arrives, also where the node adds to it."""
    result = await ending(node, watch_large, size)
    assert (result.error, result.value) == (None, [size] * 3)


async def test_replies_that_nobody_reads_are_bounded_and_a_single_one_is_not(
    pipe: NodePipe,
) -> None:
    flooded: list[bool] = []
    pipe._flooded = lambda: flooded.append(True)
    pipe.post(wire.ReplyFrame(1, bytes(17 * MB)))
    for _ in range(1000):
        pipe.post(wire.SignalFrame("EXIT", str(ME), "", wire.PackedResult(bytes(MB // 8))))
    assert not flooded
    for _ in range(17):
        pipe.post(wire.ReplyFrame(1, bytes(MB)))
    assert flooded == [True]


def raise_at_length() -> None:
    raise ValueError("x" * 70 * MB)


async def test_an_error_s_text_is_cut_and_the_process_ends_with_that_error(node: Node) -> None:
    """It would fit into no frame, and the end of the process would not be told at all."""
    error = (await ending(node, raise_at_length)).error
    assert error is not None
    assert error.kind == ExitKind.ERROR
    assert error.message.startswith("ValueError: xxx")
    assert error.traceback is not None
    assert len(error.message) < MB
