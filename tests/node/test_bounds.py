"""What a worker can make the node keep is bounded: at, below and above each bound."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import rooms
from one_node import left_as_found
from support import end_of, processes, room, until

from wsrelay import (
    ExitKind,
    HostOptions,
    InvalidName,
    Node,
    Result,
    TooMany,
    WsrelayError,
    process,
    wire,
)
from wsrelay.kernel import Kernel
from wsrelay.values import current
from wsrelay.values.pid import PID

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


MB = 1024 * 1024
ME = PID("{local@processes|1}")


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


@pytest.mark.parametrize("what", ["name", "group", "watch", "monitor", "link"])
def test_up_to_the_bound_all_is_kept_and_the_next_is_refused(
    kernel: Kernel, few: int, what: str
) -> None:
    add: Callable[[int], object] = {
        "name": lambda i: kernel.register(f"name {i}", ME),
        "group": lambda i: kernel.join_group(f"group {i}", ME),
        "watch": lambda i: kernel.watch_group(f"group {i}", ME, i),
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
        kernel.watch_group(f"group {i}", ME, i)
        kernel.monitor(ME, pids(20)[i])
        kernel.link(ME, pids(20)[i])
    kernel.unregister("name 0")
    kernel.groups.leave("group 0", ME)
    kernel.groups.unwatch("group 0", ME, 0)
    kernel.relations.unmonitor(ME, pids(20)[0])
    kernel.relations.unlink(ME, pids(20)[0])
    kernel.register("another", ME)
    kernel.join_group("another", ME)
    kernel.watch_group("another", ME, 0)
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
                case "watch":
                    process.groups.watch(f"group {i}")
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


@pytest.mark.parametrize("what", ["name", "group", "watch", "monitor", "link"])
async def test_a_worker_may_have_as_many_as_the_bound(node: Node, few: int, what: str) -> None:
    assert await end_of(node, hoard, what, few) == Result("kept")


async def test_a_worker_is_told_that_it_has_too_many_names(node: Node, few: int) -> None:
    result = await end_of(node, hoard, "name", few + 1)
    assert result == Result("TooMany: name limit of 5 reached")


@pytest.mark.parametrize("what", ["group", "watch", "monitor", "link"])
async def test_a_worker_that_wants_more_without_asking_is_ended(
    node: Node, few: int, what: str
) -> None:
    error = (await end_of(node, hoard, what, few + 1)).error
    assert error is not None
    assert (error.kind, error.message) == (ExitKind.LIMIT, f"{what} limit of 5 reached")


def join_badly() -> str:
    try:
        process.groups.join("x" * 1001)
    except InvalidName as error:
        return str(error)
    return "joined"


async def test_a_bad_group_name_is_an_error_where_it_is_used(node: Node) -> None:
    said = (await end_of(node, join_badly)).value
    assert "has more than 1000 characters" in said


def ask_and_never_read() -> None:
    """Ask for replies past the channel that would read them."""
    pipe = current.caller().pipe  # type: ignore[attr-defined]
    process.registry.register("x" * 1000)
    while True:
        pipe.write(wire.LookupFrame(1, "no such name" + "y" * 900))


async def test_a_worker_that_asks_and_never_reads_is_ended(node: Node) -> None:
    before = psutil.Process().memory_info().rss
    error = (await end_of(node, ask_and_never_read)).error
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
    assert await end_of(node, watch_many_dead, 20_000) == Result(20_000)


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
        assert (await end_of(node, flood, receiver, 100_000, count + 2)).error is None
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
        assert (await end_of(node, chatter, count)).error is None
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
        assert (await end_of(node, chatter_on, 1000)).error is None
        seconds = time.monotonic() - begin
    told = [line for line in caplog.messages if "were left out" in line]
    assert 0 < len(told) <= seconds + 2, "the first, each second's, and the last at its end"


def write_much() -> None:
    logging.getLogger("much").warning("x" * 10 * MB)


async def test_a_long_record_is_cut(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    assert (await end_of(node, write_much)).error is None
    [line] = [line for line in caplog.messages if "much: " in line]
    assert len(line) < 130 * 1024


# Spawns


async def test_spawns_beyond_the_rate_wait_and_all_come_to_life() -> None:
    host = processes(spawn_rate=20, stop_timeout=2.0)
    async with Node(hosts=[host]) as node:
        await node.loaded()
        began = time.monotonic()
        pids = [node.spawn(room(rooms.echo)) for _ in range(25)]
        started = 25 - len(node._templates["processes"]._pending)
        assert 20 <= started <= 20 + 20 * (time.monotonic() - began), "the burst is on its way"
        await until(lambda: all(node.workers[pid] for pid in pids), "all are forked")


async def test_one_that_waits_for_its_turn_can_be_ended() -> None:
    async with Node(hosts=[processes(spawn_rate=1)]) as node:
        await node.loaded()
        node.spawn(room(rooms.echo))
        results: list[Result] = []
        waiting = node.spawn(room(rooms.echo))
        node.when_ended(waiting, results.append)
        node.terminate(waiting)
        await until(lambda: results, "it has ended")
        error = results[0].error
        assert error is not None
        assert error.kind is ExitKind.TERMINATED


async def test_waiting_for_a_turn_ends_at_the_start_timeout() -> None:
    async with Node(hosts=[processes(spawn_rate=0.1, start_timeout=0.2)]) as node:
        await node.loaded()
        node.spawn(room(rooms.echo))
        error = (await end_of(node, room(rooms.echo))).error
        assert error is not None
        assert error.kind is ExitKind.START_FAILED


@pytest.mark.parametrize("options", [{"spawn_rate": 0}, {"log_rate": 0.5}])
def test_rates_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="and must be"):
        HostOptions(**options)  # type: ignore[arg-type]
