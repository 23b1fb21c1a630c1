"""Processes that a host forks ahead (`warm`)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import rooms
from support import client, os_pids, processes, received, relay_to, room, serving, until

from wsrelay import HostOptions, Node, WebSocketRelay
from wsrelay.confinement import Isolation, Limits

pytestmark = pytest.mark.anyio

WARM = 3


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with Node(hosts=[processes(warm=WARM, max_processes=8)]) as running:
        await running.loaded()
        await full(running)
        yield running


def template(node: Node) -> int:
    pid = node.templates["processes"]
    assert pid is not None
    return pid


def waiting(node: Node) -> set[int]:
    """Children of the template that are nobody's worker yet."""
    children = psutil.Process(template(node)).children()
    alive = {child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE}
    return alive - set(os_pids(node))


async def full(node: Node) -> set[int]:
    """Wait until as many processes wait as should; gives them."""
    await until(lambda: len(waiting(node)) == WARM, f"{WARM} processes wait")
    return waiting(node)


async def echoes(node: Node, pid: str) -> bool:
    async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as websocket:
        await websocket.send("hello")
        return await received(websocket) == "hello"


async def test_a_spawn_takes_a_process_that_waits_and_another_one_takes_its_place(
    node: Node,
) -> None:
    before = await full(node)
    pid = node.spawn(room(rooms.echo))
    await until(lambda: node.workers[pid], "it has a process")
    assert node.workers[pid] in before
    assert await echoes(node, pid)
    assert len(await full(node) & before) == WARM - 1


async def test_more_spawns_than_processes_that_wait_all_come_to_life(node: Node) -> None:
    before = await full(node)
    pids = [node.spawn(room(rooms.echo)) for _ in range(2 * WARM)]
    for pid in pids:
        assert await echoes(node, pid)
    assert len(set(os_pids(node))) == 2 * WARM
    assert before < set(os_pids(node))


async def test_those_that_wait_are_no_processes_of_the_node(node: Node) -> None:
    assert not node.workers
    assert not node.kernel.processes
    for _ in range(8):
        node.spawn(room(rooms.echo))
    await until(lambda: all(node.workers.values()), "all that the host may have are there")


async def test_a_process_that_was_killed_while_it_waited_is_not_used(node: Node) -> None:
    dead = await full(node)
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not any(map(psutil.pid_exists, dead)), "they were reaped")
    one = node.spawn(room(rooms.echo))
    await until(lambda: node.workers[one], "it has a process")
    assert await echoes(node, one)
    assert not await full(node) & dead


async def test_one_that_is_killed_is_not_replaced_before_the_next_spawn(node: Node) -> None:
    """Or a host whose forks die at once would do nothing but fork."""
    before = await full(node)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(victim), "it was reaped")
    assert waiting(node) == before - {victim}
    pid = node.spawn(room(rooms.echo))
    await until(lambda: node.workers[pid], "it has a process")
    assert await echoes(node, pid)
    await full(node)


async def test_they_hold_no_end_of_what_the_others_wait_at(node: Node) -> None:
    """Each has its own socket to the template, and none of the others or of the node."""
    pids = await full(node)
    await until(lambda: [len(sockets_of(pid)) for pid in pids] == [1] * WARM, "one socket each")
    assert len(set.union(*map(sockets_of, pids))) == WARM


def sockets_of(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it is closing what is not its own
            name = str(entry.readlink())
            if name.startswith("socket:"):
                found.add(name)
    return found


async def test_they_end_with_the_template(node: Node) -> None:
    left, lost = await full(node), template(node)
    os.kill(lost, signal.SIGKILL)
    await until(lambda: not any(map(psutil.pid_exists, left)), "they are gone")
    await until(lambda: node.templates["processes"] != lost, "the node knows")
    assert await echoes(node, node.spawn(room(rooms.echo)))


async def test_a_fork_that_is_refused_ends_neither_the_template_nor_what_waits() -> None:
    """`two_forks`, preloaded, lets the first two forks through only."""
    async with Node(hosts=[processes(warm=WARM, preload=("two_forks",))]) as node:
        await node.loaded()
        await until(lambda: len(waiting(node)) == 2, "two were forked")
        first, second = node.spawn(room(rooms.echo)), node.spawn(room(rooms.echo))
        assert await echoes(node, first)
        assert await echoes(node, second)
        third = node.spawn(room(rooms.echo))
        await until(lambda: third not in node.workers, "there is none for the third")
        assert await echoes(node, first)


async def test_limits_and_isolation_are_those_of_the_host() -> None:
    host = processes(
        warm=WARM, isolation=Isolation(network="none"), limits=Limits(open_files=100, cpu_time=60)
    )
    async with Node(hosts=[host]) as node:
        await node.loaded()
        before = await full(node)
        pid = node.spawn(room(rooms.echo))
        await until(lambda: node.workers[pid], "it has a process")
        os_pid = node.workers[pid]
        assert os_pid in before
        assert await echoes(node, pid)
        process = psutil.Process(os_pid)
        assert process.rlimit(psutil.RLIMIT_NOFILE) == (100, 100)
        assert process.rlimit(psutil.RLIMIT_CPU) == (60, 61)


@pytest.mark.parametrize("warm", [-1, 9])
def test_as_many_are_forked_ahead_as_may_run_at_most(warm: int) -> None:
    with pytest.raises(ValueError, match=f"warm is {warm} and must be 0 to max_processes, which"):
        HostOptions(warm=warm, max_processes=8)
