"""What waits for each process, when it took the last message, and which have stalled."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import hanging
import pytest
import rooms
from exits import Exits
from one_node import left_as_found, running_node
from support import client, closed, processes, relay_to, room, serving, until, value_of

from wsrelay import PID, Node, Service, Supervisor, WebSocketRelay
from wsrelay.node import ProcessInfo
from wsrelay.node.process import WorkerProcess
from wsrelay.node.snapshot import describe

pytestmark = pytest.mark.anyio

STALL = 0.2

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is stopped")


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    hosts = [
        processes(),
        processes(name="watched", stall=STALL),
        processes(name="strict", stall=STALL, stall_action="terminate"),
    ]
    async with running_node(*hosts) as node:
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


def info(node: Node, pid: PID) -> ProcessInfo:
    [found] = [one for one in describe(node).processes if one.pid == pid]
    return found


async def started(node: Node, function: Callable[..., Any], host: str | None, *args: Any) -> PID:
    pid = node.spawn(f"{hanging.__file__}:{function.__name__}", host, *map(str, args))
    assert await node.started(pid) is None
    return pid


async def hangs(
    node: Node, host: str, function: Callable[..., Any] = hanging.spin, *args: Any
) -> PID:
    """A process that has taken one message of three and takes no more."""
    pid = await started(node, function, host, *args)
    for number in range(3):
        node.send(pid, "work", number)
    await until(lambda: info(node, pid).waiting == 2, "it has taken one")
    return pid


async def stalls(node: Node, pid: PID) -> None:
    await until(lambda: info(node, pid).stalled, f"{pid} has stalled")


def warnings(caplog: pytest.LogCaptureFixture, pid: PID) -> list[str]:
    texts = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    return [text for text in texts if text.startswith(f"{pid} ") and " stalled " in text]


# What waits, and when the last was taken


@pytest.mark.parametrize("in_c", [True, False], ids=["in C", "in Python"])
async def test_what_a_process_has_not_taken_waits_wherever_it_is(
    in_c: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not in_c:
        monkeypatch.setenv("WSRELAY_NO_EXTENSIONS", "1")
    async with Node(hosts=[processes()]) as node:
        pid = await started(node, hanging.wait, None, tmp_path / "go on")
        assert info(node, pid).idle is None
        assert info(node, pid).waiting == 0
        async with (
            serving(WebSocketRelay(relay_to(pid), node=node)) as url,
            client(url) as one,
            client(url),
        ):
            await until(lambda: info(node, pid).waiting == 1, "it has taken the first join")
            since = info(node, pid).idle
            assert since is not None
            for _ in range(20):
                await one.send("hello")
                node.send(pid, "hello")
            await until(lambda: info(node, pid).waiting == 41)
            await until(lambda: (info(node, pid).idle or 0) > since, "it was the last that it took")
            (tmp_path / "go on").touch()
            await until(lambda: info(node, pid).waiting == 0, "it has taken all")
            for _ in range(20):
                await one.send("hello")
            await until(lambda: info(node, pid).waiting == 0, "those come by the short way")
        await until(lambda: (info(node, pid).connections, info(node, pid).waiting) == (0, 0))


async def test_what_waits_in_a_channel_that_nobody_reads_counts(node: Node) -> None:
    pid = await started(node, hanging.listen, None)
    node.send(pid, "other")
    node.send(pid, "inbox")
    node.send(pid, "other")
    await until(lambda: info(node, pid).idle is not None, "it has taken from the inbox")
    await until(lambda: info(node, pid).waiting == 2)


async def test_what_waits_for_a_process_that_waits_to_start_counts(
    node: Node, tmp_path: Path
) -> None:
    target = f"{hanging.__file__}:wait"
    first = node.get_or_spawn("room", target, None, str(tmp_path / "never"))
    assert await node.started(first) is None
    node.send(first, "work")
    await until(lambda: info(node, first).idle is not None, "it hangs")
    node.cancel(first)
    second = node.get_or_spawn("room", target, None, str(tmp_path / "never"))
    assert second != first
    node.send(second, "work")
    node.send(second, "work")
    assert (info(node, second).waiting, info(node, second).idle) == (2, None)
    await until(lambda: info(node, second).waiting == 1, "it has started and taken one")


async def test_however_many_processes_there_were_the_next_is_seen_from_the_beginning() -> None:
    async with Node(hosts=[processes(max_processes=1)]) as node:
        for _ in range(66):  # more than the host has lines
            await value_of(node, room(rooms.return_at_once))
        pid = await hangs(node, "processes")
        assert info(node, pid).idle is not None


@on_linux
async def test_a_worker_that_writes_nonsense_to_the_memory_misleads_nobody_further(
    node: Node,
) -> None:
    liar = await started(node, hanging.lie, None)
    honest = await started(node, hanging.read, None)
    node.send(honest, "work")
    await until(lambda: info(node, honest).idle, "it has taken that")
    node.send(liar, "lie")
    await until(lambda: "lied" in info(node, liar).names)
    node.send(liar, "work")
    for pid in (liar, honest):
        assert (info(node, pid).waiting, info(node, pid).idle) == (0, 0)
    node.send(honest, "work")
    await until(lambda: info(node, honest).idle, "what it notes from then on is right again")
    assert info(node, honest).waiting == 0


# Stalls


async def test_a_stall_is_logged_once_and_shown_until_messages_are_taken(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pid = await hangs(node, "watched", hanging.wait, tmp_path / "go on")
    node.kernel.register("room:blue", pid)
    await stalls(node, pid)
    assert info(node, pid).state == "stalled"
    another = await hangs(node, "watched")
    await stalls(node, another)  # so it was looked at again
    [text] = warnings(caplog, pid)
    short = pid[1:-1].rpartition("|")[2]
    assert text.startswith(
        f"{pid} room:blue has stalled for {STALL}s: 2 messages wait for it, and "
    )
    assert f"OS pid {node.workers[pid]}); `wsrelay stack {short}` shows where it is" in text
    (tmp_path / "go on").touch()
    await until(lambda: info(node, pid).waiting == 0)
    assert not info(node, pid).stalled
    assert info(node, pid).state == "running"


async def test_each_stall_is_logged(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = tmp_path / "go on"
    pid = await hangs(node, "watched", hanging.wait, go_on)
    await stalls(node, pid)
    go_on.touch()
    await until(lambda: info(node, pid).waiting == 0)
    another = await hangs(node, "watched")
    await stalls(node, another)  # so it was seen to go on
    go_on.unlink()
    node.send(pid, "work")
    node.send(pid, "work")
    await stalls(node, pid)
    assert len(warnings(caplog, pid)) == 2


async def test_who_has_nothing_to_take_does_not_stall(node: Node, tmp_path: Path) -> None:
    idle = await started(node, hanging.read, "watched")
    node.send(idle, "work")
    busy = await started(node, hanging.compute, "watched", tmp_path / "never")
    unwatched = await hangs(node, "processes")
    await stalls(node, await hangs(node, "watched"))  # all others have had as long as that
    await stalls(node, await hangs(node, "watched"))
    for pid in (idle, busy, unwatched):
        assert not info(node, pid).stalled


async def test_messages_in_a_channel_that_nobody_reads_are_a_stall(node: Node) -> None:
    pid = await started(node, hanging.listen, "watched")
    node.send(pid, "other")
    await stalls(node, pid)


async def test_a_coroutine_that_awaits_something_else_stalls(node: Node) -> None:
    await stalls(node, await hangs(node, "watched", hanging.await_reply))


@on_linux
async def test_the_time_of_a_stall_stands_still_while_the_process_is_stopped(
    node: Node, tmp_path: Path
) -> None:
    pid = await hangs(node, "watched", hanging.wait, tmp_path / "go on")
    os_pid = node.workers[pid]
    assert os_pid is not None
    os.kill(os_pid, signal.SIGSTOP)
    try:
        for _ in range(2):
            await stalls(node, await hangs(node, "watched"))
        assert not info(node, pid).stalled
    finally:
        os.kill(os_pid, signal.SIGCONT)
    await stalls(node, pid)


async def test_the_time_of_a_stall_stands_still_while_the_process_is_frozen(
    node: Node, tmp_path: Path
) -> None:
    pid = await hangs(node, "watched", hanging.wait, tmp_path / "go on")
    process = node.engine.processes[pid]
    process.freeze(0)
    for _ in range(2):
        await stalls(node, await hangs(node, "watched"))
    assert not info(node, pid).stalled
    process.thaw()
    await stalls(node, pid)


async def test_nothing_is_looked_at_where_no_host_has_a_stall(node: Node) -> None:
    def looks() -> bool:
        return node.engine.stalls.looks

    await started(node, hanging.read, None)
    assert not looks()
    pid = await started(node, hanging.read, "watched")
    assert looks()
    node.terminate(pid)
    await until(lambda: not looks(), "the last one has ended")


async def test_who_stalls_is_ended_where_that_is_wanted_and_its_stack_is_told(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    exits = Exits(node)
    pid = await started(node, hanging.spin, "strict")
    async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as one:
        for _ in range(2):
            await one.send("work")
        assert await closed(one) == (1011, "target process killed (stalled)")
    error = await exits.error(pid)
    assert error.kind == "stalled"
    assert error.message == f"killed: it took no message for {STALL}s while 2 waited"
    assert error.traceback is not None
    assert " in spin" in error.traceback
    ended = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert any(text.startswith(f"{pid} ended: killed: it took no") for text in ended)


async def test_who_goes_on_before_it_is_ended_lives(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = tmp_path / "go on"

    async def stack(process: WorkerProcess, _names: object) -> str:
        go_on.touch()
        await until(lambda: process.waiting == 0, "it goes on while it is looked at")
        looked.append(process.pid)
        return ""

    looked: list[PID] = []
    monkeypatch.setattr("wsrelay.node.stall_actions.stack_of", stack)
    pid = await hangs(node, "strict", hanging.wait, go_on)
    await until(lambda: looked == [pid])
    node.send(pid, "more")
    await until(lambda: info(node, pid).waiting == 0)
    assert info(node, pid).state == "running"


async def test_a_service_that_stalls_is_started_again() -> None:
    node = Node(hosts=[processes(stall=STALL, stall_action="terminate")])
    supervisor = Supervisor(node, [Service(name="spins", target=f"{hanging.__file__}:spin")])
    async with node:
        first = await until(lambda: supervisor.pid("spins"))
        assert await node.started(first) is None
        node.send(first, "work")
        node.send(first, "work")
        await until(lambda: supervisor.pid("spins") not in {None, first}, "it has another process")
