"""Calls of a node that raise: they have changed nothing."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import rooms
from one_node import running_node
from support import processes, room

from wsrelay import PID, Node
from wsrelay.errors import WsrelayError

pytestmark = pytest.mark.anyio

SURROGATE = "\ud800"


def all_of(node: Node) -> Any:
    """What a node remembers of its processes, to be compared."""
    kernel = node.kernel
    parts = (kernel.names, kernel.groups, kernel.relations)
    states = {pid: (process.state, process.ended_by) for pid, process in kernel.processes.items()}
    pipes = {}
    for pid in node.workers:
        worker = node.engine.processes.get(pid)
        assert worker is not None
        pipes[pid] = (worker.pipe.queued, worker.pipe.backlog, worker.pipe.mailbox)
    counts = [kernel.count(host) for host in node.hosts]
    return copy.deepcopy((states, counts, pipes, node.dead_letters, [vars(part) for part in parts]))


@pytest.fixture(scope="module")
async def peopled() -> AsyncIterator[tuple[Node, PID]]:
    """A node with a process that has a name and a group, and with a host that is full."""
    async with running_node(processes(), processes(name="full", max_processes=1)) as node:
        pid = node.spawn_as("name", room(rooms.echo))
        node.join_group("group", pid)
        await node.started(pid)
        await node.started(node.spawn(room(rooms.echo), "full"))
        yield node, pid


@pytest.mark.parametrize(
    "call",
    [
        lambda node, pid: node.send(pid, "@reserved"),
        lambda node, pid: node.send(pid, 7),
        lambda node, pid: node.send(pid, SURROGATE),
        lambda node, pid: node.send(pid, "topic", {"key": [SURROGATE]}),
        lambda node, pid: node.send(pid, "topic", object()),
        lambda node, pid: node.send([pid, "{nonsense"], "topic"),
        lambda node, _: node.broadcast("group", SURROGATE, None),
        lambda node, _: node.broadcast("group", "@reserved", None),
        lambda node, _: node.broadcast("group", "topic", object()),
        lambda node, pid: node.cancel(pid, SURROGATE),
        lambda node, pid: node.cancel(pid, 7),
        lambda node, _: node.cancel("{nonsense"),
        lambda node, _: node.terminate("{nonsense"),
        lambda node, _: node.spawn("nonsense"),
        lambda node, _: node.spawn(f"{SURROGATE}.py:handler"),
        lambda node, _: node.spawn(f"module:{SURROGATE}"),
        lambda node, _: node.spawn(room(rooms.echo), "no such host"),
        lambda node, _: node.spawn(room(rooms.echo), "full"),
        lambda node, _: node.spawn(room(rooms.echo), None, (one for one in "generator")),
        lambda node, _: node.get_or_spawn("", room(rooms.echo)),
        lambda node, _: node.get_or_spawn(SURROGATE, room(rooms.echo)),
        lambda node, _: node.get_or_spawn("other", room(rooms.echo), "full"),
        lambda node, _: node.get_or_spawn("other", room(rooms.echo), "no such host"),
        lambda node, _: node.spawn_as("name", room(rooms.echo)),
        lambda node, pid: node.register("{name", pid),
        lambda node, pid: node.register(SURROGATE, pid),
        lambda node, _: node.register("other", None),
        lambda node, _: node.register("other", "{local@processes|nobody}"),
        lambda node, _: node.lookup("other"),
        lambda node, _: node.unregister("other"),
        lambda node, pid: node.join_group("", pid),
        lambda node, _: node.join_group("other", None),
        lambda node, _: node.leave_group("group", "{nonsense"),
    ],
)
async def test_whatever_raises_on_a_node_has_changed_nothing(
    peopled: tuple[Node, PID], call: Callable[[Node, Any], object]
) -> None:
    node, pid = peopled
    before = all_of(node)
    with pytest.raises((WsrelayError, ValueError)):
        call(node, pid)
    assert all_of(node) == before
