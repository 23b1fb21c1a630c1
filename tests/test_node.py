"""A node by itself: what its calls leave behind when they raise, its end, its event loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from support import processes, room

from wsrelay import Node
from wsrelay.errors import WsrelayError

pytestmark = pytest.mark.anyio

SURROGATE = "\ud800"


# What raises has changed nothing


def all_of(node: Node) -> Any:
    """What a node remembers of its processes, to be compared."""
    kernel = node.kernel
    parts = (kernel.names, kernel.groups, kernel.relations)
    states = {pid: (process.state, process.ended_by) for pid, process in kernel.processes.items()}
    pipes = {}
    for pid in node.workers:
        worker = node.worker(pid)
        assert worker is not None
        pipes[pid] = (worker.pipe.queued, worker.pipe.backlog, worker.pipe.mailbox)
    counts = [kernel.count(host) for host in node.hosts]
    return copy.deepcopy((states, counts, pipes, node.dead_letters, [vars(part) for part in parts]))


@pytest.mark.parametrize(
    "call",
    [
        lambda node, pid: node.send(pid, "@reserved"),
        lambda node, pid: node.send(pid, 7),
        lambda node, pid: node.send(pid, SURROGATE),
        lambda node, pid: node.send(pid, "topic", {"key": [SURROGATE]}),
        lambda node, pid: node.send(pid, "topic", object()),
        lambda node, pid: node.send([pid, "{nonsense"], "topic"),
        lambda node, pid: node.broadcast("group", SURROGATE, None),
        lambda node, pid: node.broadcast("group", "@reserved", None),
        lambda node, pid: node.broadcast("group", "topic", object()),
        lambda node, pid: node.cancel(pid, SURROGATE),
        lambda node, pid: node.cancel(pid, 7),
        lambda node, pid: node.cancel("{nonsense"),
        lambda node, pid: node.terminate("{nonsense"),
        lambda node, pid: node.spawn("nonsense"),
        lambda node, pid: node.spawn(f"{SURROGATE}.py:handler"),
        lambda node, pid: node.spawn(f"module:{SURROGATE}"),
        lambda node, pid: node.spawn(room("echo"), "no such host"),
        lambda node, pid: node.spawn(room("echo"), "full"),
        lambda node, pid: node.spawn(room("echo"), None, (one for one in "generator")),
        lambda node, pid: node.get_or_spawn("", room("echo")),
        lambda node, pid: node.get_or_spawn(SURROGATE, room("echo")),
        lambda node, pid: node.get_or_spawn("other", room("echo"), "full"),
        lambda node, pid: node.get_or_spawn("other", room("echo"), "no such host"),
        lambda node, pid: node.spawn_as("name", room("echo")),
        lambda node, pid: node.register("{name", pid),
        lambda node, pid: node.register(SURROGATE, pid),
        lambda node, pid: node.register("other", None),
        lambda node, pid: node.register("other", "{local@processes|nobody}"),
        lambda node, pid: node.lookup("other"),
        lambda node, pid: node.unregister("other"),
        lambda node, pid: node.join_group("", pid),
        lambda node, pid: node.join_group("other", None),
        lambda node, pid: node.leave_group("group", "{nonsense"),
    ],
)
async def test_whatever_raises_on_a_node_has_changed_nothing(
    call: Callable[[Node, Any], object],
) -> None:
    hosts = [processes(), processes(name="full", max_processes=1)]
    async with Node(hosts=hosts) as node:
        pid = node.spawn_as("name", room("echo"))
        node.spawn(room("echo"), "full")
        node.join_group("group", pid)
        before = all_of(node)
        with pytest.raises((WsrelayError, ValueError)):
            call(node, pid)
        assert all_of(node) == before
