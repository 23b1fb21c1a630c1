"""What workers and templates break, and what goes on all the same."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import AsyncIterator

import psutil
import pytest
import rooms
from exits import Exits, driven, template_of
from support import Journal, closed, processes, received, room, say, until

from wsrelay import ExitKind, Node, Result, process

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["pidfd", "no pidfd", "warm"])
async def any_node(request: pytest.FixtureRequest) -> AsyncIterator[Node]:
    """Nodes whose templates have pidfds, have none, and fork ahead."""
    preload = ("no_pidfd",) if request.param == "no pidfd" else ()
    warm = 2 if request.param == "warm" else 0
    async with Node(hosts=[processes(preload=preload, warm=warm)]) as node:
        yield node


async def test_a_killed_template_takes_its_workers_along_and_is_replaced(any_node: Node) -> None:
    exits = Exits(any_node)
    pids = [any_node.spawn(room(rooms.wait)) for _ in range(3)]
    await until(lambda: all(any_node.workers.values()), "all run")
    os_pids = [pid for pid in any_node.workers.values() if pid is not None]
    os.kill(template_of(any_node), signal.SIGKILL)
    errors = [await exits.error(pid) for pid in pids]
    assert {error.kind for error in errors} == {"template_lost"}
    await until(lambda: not any(map(psutil.pid_exists, os_pids)), "all workers are gone")
    assert (await exits.of(any_node.spawn(room(rooms.return_at_once), None, 1))).value == 1


async def test_a_template_killed_with_frames_unread_on_both_sides_is_lost_too(node: Node) -> None:
    """Behind its last frames there is an error then, which is not told a second time."""
    await node.loaded()
    template, control = node.templates["processes"], node._templates["processes"]._control
    assert template is not None
    assert control is not None
    results: list[Result] = []
    node.when_ended(node.spawn(room(rooms.echo)), results.append)
    select.select([control], [], [], 10)  # it has answered, and the event loop has not seen it
    os.kill(template, signal.SIGSTOP)
    node.when_ended(node.spawn(room(rooms.echo)), results.append)
    pidfd = os.pidfd_open(template)
    os.kill(template, signal.SIGKILL)
    assert select.select([pidfd], [], [], 10)[0], "it is dead, and the event loop has waited"
    os.close(pidfd)
    await until(lambda: len(results) == 2, "both are told")
    assert {r.error.kind for r in results if r.error} == {ExitKind.TEMPLATE_LOST}


async def test_a_stalled_template_does_not_hide_a_death(node: Node, journal: Journal) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with driven(node, pid) as websocket:
        await journal.line("ws.join")
        template = template_of(node)
        os.kill(template, signal.SIGSTOP)
        try:
            os.kill(node.workers[pid] or 0, signal.SIGKILL)
            assert (await closed(websocket))[0] == 1011
        finally:
            os.kill(template, signal.SIGCONT)


async def test_garbage_on_the_pipe_ends_its_worker_and_nobody_else(
    node: Node, journal: Journal
) -> None:
    exits = Exits(node)
    other = node.spawn(room(rooms.echo))
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with driven(node, pid) as websocket:
        await say(websocket, "garbage")
        assert await closed(websocket) == (1011, "target process crashed")
    assert "garbage" in (await exits.error(pid)).message
    async with driven(node, other) as websocket:
        await websocket.send("still here")
        assert await received(websocket) == "still here"


def write_garbage() -> None:
    """Write what is no frame, and wait to be killed."""
    process._worker().pipe.ends.write_all(b"\xff" * 64)
    time.sleep(60)


async def test_nothing_is_received_before_the_template_s_word_of_the_fork(node: Node) -> None:
    """So whoever hears of a process finds its OS process; garbage is no end of an unknown one."""
    await node.loaded()
    host, loop = node._templates["processes"], asyncio.get_running_loop()
    pid = node.spawn(write_garbage)
    loop.remove_reader(host._told)
    worker = node.engine.processes[pid]._incarnation
    assert worker is not None
    assert select.select([worker.pipe._reading], [], [], 10)[0], "it has written"
    started = asyncio.ensure_future(node.started(pid))
    await asyncio.sleep(0)
    assert not started.done()
    loop.add_reader(host._told, host._readable)
    error = await Exits(node).error(pid)
    assert (error.kind, error.message[:33]) == (ExitKind.ERROR, "killed: it wrote garbage on its p")
    assert worker.os_pid is not None
    assert await started is None, "it had said so before"


async def test_a_frame_cut_by_death_is_dropped_and_what_came_before_it_is_not(
    node: Node, journal: Journal
) -> None:
    pid = node.spawn(room(rooms.record), None, str(journal.path))
    async with driven(node, pid) as websocket:
        await say(websocket, "half_frame")
        assert await received(websocket) == "whole"
        assert await closed(websocket) == (1011, "target process killed (SIGKILL)")


async def test_a_worker_that_floods_another_ends_that_one_loudly(journal: Journal) -> None:
    async with Node(hosts=[processes(mailbox=1_000_000)]) as node:
        exits = Exits(node)
        stalled = node.spawn(room(rooms.wait))
        pid = node.spawn(room(rooms.record), None, str(journal.path))
        async with driven(node, pid) as websocket:
            for _ in range(20):
                await say(websocket, "send", stalled, "data", "x" * 100_000)
            error = await exits.error(stalled)
            assert error.kind == "mailbox_overflow"
            await say(websocket, "send", None, "ws.send", {"type": "text", "data": "fine"})
            assert await received(websocket) == "fine"


async def test_hundreds_of_spawns_leave_everything_as_it_was(node: Node) -> None:
    exits = Exits(node)

    async def cycle(count: int) -> None:
        pids = [node.spawn(room(rooms.return_at_once), None, number) for number in range(count)]
        for number, pid in enumerate(pids):
            assert (await exits.of(pid)).value == number
        exits.results.clear()

    me, template = psutil.Process(), psutil.Process
    await cycle(50)
    host = template(template_of(node))
    await until(lambda: not host.children(), "all are reaped")
    before = me.num_fds(), host.num_fds()
    for _ in range(10):
        await cycle(50)
    # The template may not have got round to closing what it needed for the last ones.
    await until(
        lambda: me.num_fds() <= before[0] and host.num_fds() <= before[1] and not host.children(),
        "everything is as it was",
    )
    rss = me.memory_info().rss, host.memory_info().rss
    assert not node.workers
    for _ in range(4):
        await cycle(50)
    grown = me.memory_info().rss - rss[0], host.memory_info().rss - rss[1]
    assert max(grown) < 2_000_000
