"""Processes that wait for the one before them under their name, and what happens to their node."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import NoReturn

import pytest
import rooms
from exits import Exits
from support import processes, room, until

from wsrelay import PID, ExitError, ExitKind, HostFailed, Isolation, Node, process
from wsrelay.wire.pipe_pair import Duplex

pytestmark = pytest.mark.anyio

DEAF = room(rooms.deaf)


async def one_that_waits(node: Node) -> tuple[PID, PID]:
    """A room that has been cancelled and does not end by itself, and its successor."""
    first = node.get_or_spawn("room", DEAF)
    assert await node.started(first) is None
    node.cancel(first)
    return first, node.get_or_spawn("room", umask)


def umask() -> int:
    mask = os.umask(0)
    process.inbox().receive()
    return mask


async def test_a_node_that_is_closed_leaves_nobody_who_waits() -> None:
    async with Node(hosts=[processes(stop_timeout=0.1)]) as node:
        exits = Exits(node)
        first, second = await one_that_waits(node)
        node.drain()
        assert exits.results[second].error is None, "it ends before the one that it waits for"
        with pytest.raises(HostFailed, match="shuts down"):
            node.get_or_spawn("room", DEAF)
    assert list(exits.results) == [second, first]
    assert not node.kernel.processes


async def test_all_that_wait_end_with_all_that_run() -> None:
    async with Node(hosts=[processes(stop_timeout=20)]) as node:
        exits = Exits(node)
        first, second = await one_that_waits(node)
        await until(lambda: node.workers[first], "the first has an OS process")
        node.terminate_all()
        await until(lambda: not node.workers, "all are gone")
    assert list(exits.results) == [second, first]
    assert {(await exits.error(pid)).kind for pid in (first, second)} == {ExitKind.TERMINATED}


def test_a_node_whose_event_loop_is_gone_starts_nobody_who_waited() -> None:
    node = Node(hosts=[processes(stop_timeout=20)])
    loop = asyncio.new_event_loop()

    async def use() -> tuple[Exits, PID, PID]:
        node.start()
        return Exits(node), *await one_that_waits(node)

    async def close() -> None:
        node.start()
        await node.aclose()

    try:
        exits, first, second = loop.run_until_complete(use())
    finally:
        loop.close()
    asyncio.run(close())
    assert list(exits.results) == [second, first]
    assert exits.results[second].error == exits.results[first].error
    assert exits.results[second].error == ExitError(ExitKind.KILLED, "SIGKILL: its node was closed")


async def test_who_waited_runs_as_its_host_is_by_then() -> None:
    async with Node(hosts=[processes(stop_timeout=20)]) as node:
        exits = Exits(node)
        first, second = await one_that_waits(node)
        await node.reconfigure([processes(isolation=Isolation(umask=0o027), stop_timeout=7.0)], {})
        node.terminate(first)
        assert await node.started(second) is None
        assert node.engine.processes[second].options.stop_timeout == 7
        node.send(second, "end")
        assert (await exits.of(second)).value == 0o027


async def test_who_waited_ends_where_its_host_is_gone_by_then() -> None:
    async with Node(hosts=[processes(stop_timeout=20)]) as node:
        exits = Exits(node)
        first, second = await one_that_waits(node)
        await node.reconfigure([processes(name="other")], {})
        node.terminate(first)
        error = await exits.error(second)
        assert error.kind is ExitKind.START_FAILED
        assert error.message.startswith("no process host 'processes'; this node has other")


async def test_who_waited_ends_where_the_system_has_no_descriptors_by_then(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    exits = Exits(node)
    first, second = await one_that_waits(node)

    def none_left() -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Duplex, "pair", none_left)
        node.terminate(first)
        error = await exits.error(second)
    assert error == ExitError(
        ExitKind.START_FAILED, "no process can be started: Too many open files"
    )
    assert node.kernel.count("processes") == 0
