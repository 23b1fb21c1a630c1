"""A node by itself: what its calls leave behind when they raise, its end, its event loops."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import client, processes, relay_to, room, serving, until

from wsrelay import (
    Node,
    RestartPolicy,
    Result,
    Service,
    Supervisor,
    UnknownHost,
    WebSocketRelay,
    process,
)
from wsrelay.errors import WsrelayError
from wsrelay.gateway.rooms import Rooms

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
        lambda node, _: node.spawn(room("echo"), "no such host"),
        lambda node, _: node.spawn(room("echo"), "full"),
        lambda node, _: node.spawn(room("echo"), None, (one for one in "generator")),
        lambda node, _: node.get_or_spawn("", room("echo")),
        lambda node, _: node.get_or_spawn(SURROGATE, room("echo")),
        lambda node, _: node.get_or_spawn("other", room("echo"), "full"),
        lambda node, _: node.get_or_spawn("other", room("echo"), "no such host"),
        lambda node, _: node.spawn_as("name", room("echo")),
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


# Dead letters, and what stands in the log


async def test_a_message_to_nobody_is_one_dead_letter(node: Node) -> None:
    app = WebSocketRelay(relay_to(node.spawn(deaf)), node=node)
    async with serving(app) as url, client(url) as one:
        [target] = await until(lambda: node.connections and node.workers)
        node.cancel(target)
        before = node.dead_letters
        await one.send("hello")
        await until(lambda: node.dead_letters == before + 1, "the client's message")
        await one.close()
        await until(lambda: not node.connections)
        assert node.dead_letters == before + 2, "the client's message and its ws.leave"
        node.terminate(target)


def deaf() -> None:
    threading.Event().wait()


def loud(size: int) -> None:
    raise ValueError("x" * size)


async def test_what_processes_say_of_their_end_stands_shortened_in_the_log(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[Result] = []
    node.when_ended(node.spawn(loud, None, 5_000_000), results.append)
    [result] = await until(lambda: results)
    assert len(result.error.message) > 5_000_000  # whoever monitors it gets all of it
    [line] = [text for text in caplog.messages if "crashed" in text]
    assert len(line) < 100_000
    assert "characters ..." in line
    assert "in loud" in line


async def test_a_service_s_failure_stands_shortened_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = Node(hosts=[processes()])
    policy = RestartPolicy(initial_delay=0.01, max_attempts=2)
    Supervisor(node, [Service(name="loud", target=loud, args=(5_000_000,), restart=policy)])
    async with node:
        await until(lambda: "is given up" in caplog.text)
    assert max(map(len, caplog.messages)) < 100_000


def spawner(host: str | None) -> str:
    with pytest.raises(UnknownHost) as raised:
        process.spawn("nobody.py", host)
    return str(raised.value)


async def test_an_unknown_host_is_named(node: Node) -> None:
    await node.loaded()
    results: list[Result] = []
    node.when_ended(node.spawn(waits_for_host), results.append)
    [pid] = node.workers
    await node.started(pid)
    await node.reconfigure([processes(name="other")], {})
    node.send(pid, "go")
    [result] = await until(lambda: results)
    assert "no process host 'processes'; this node has other" in result.value


def waits_for_host() -> str:
    process.inbox().receive()
    return spawner(None)


# A room's linger


async def test_who_asks_and_gives_up_does_not_shorten_a_room_s_linger(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrelay.gateway.rooms._PATIENCE", 0.01)
    long = Rooms(node, room("echo"), linger=3600).enter("long")
    short = Rooms(node, room("echo"), linger=0).enter("short")
    await until(lambda: short not in node.workers, "the one without a linger has ended")
    assert node.lookup("room:long") == long
