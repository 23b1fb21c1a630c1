"""Names, groups and ends from the node's own code."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from exits import Exits
from misuse_handlers import RELATIONS
from one_node import NOBODY, connection, front_of, left_as_found, one_node
from relating import give, mortal
from support import closed, received, until

from wsrelay import (
    PID,
    InvalidPID,
    InvalidTarget,
    NameNotFound,
    NameTaken,
    Node,
    NotAProcess,
    PayloadError,
    ReservedTopic,
    Result,
    UnknownHost,
    process,
)
from wsrelay.aio import process as aio_process

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with one_node() as node:
        yield node


@pytest.fixture(scope="module")
async def front(shared: Node) -> AsyncIterator[str]:
    async with front_of(shared) as url:
        yield url


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


async def in_loop(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.to_thread(function, *args)


PLACES = pytest.mark.parametrize("place", [in_loop, in_thread])


@PLACES
async def test_names_work_on_the_node(node: Node, place: Any) -> None:
    def use() -> None:
        pid, other = process.spawn(mortal), process.spawn(mortal)
        process.registry.register("name", pid)
        process.registry.register("name", pid.replace("local@", ""))
        assert process.registry.lookup("name") == pid
        assert process.get_or_spawn("name", mortal) == pid
        with pytest.raises(NameTaken, match=re.escape(f"the name 'name' belongs to {pid}")):
            process.registry.register("name", other)
        process.registry.unregister("name")
        with pytest.raises(NameNotFound, match="no process is registered as 'name'"):
            process.registry.unregister("name")
        with pytest.raises(LookupError):
            process.registry.lookup("name")
        with pytest.raises(NotAProcess, match="say which process you mean"):
            process.registry.register("name")
        with pytest.raises(InvalidPID):
            process.registry.register("name", "{nonsense")
        with pytest.raises(ValueError, match="is not alive"):
            process.registry.register("name", "{processes|none}")
        with pytest.raises(ValueError, match="is not a name"):
            process.registry.register("{name}", pid)
        process.registry.register("name", pid)
        assert process.fence("name") == process.fence("name") > 0
        with pytest.raises(ValueError, match="say which name you mean"):
            process.fence()
        process.cancel("name")
        with pytest.raises(NameNotFound):
            process.registry.lookup("name")
        with pytest.raises(NameNotFound):
            process.fence("name")

    await place(use)
    await until(lambda: len(node.workers) == 1, "the cancelled one has ended")


async def test_an_http_handler_is_told_the_number_of_an_owner_on_another_node(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.engine.elsewhere, "fence", {"there": 7}.get)
    assert process.fence("there") == 7
    with pytest.raises(NameNotFound):
        process.fence("nowhere")


@PLACES
async def test_groups_work_on_the_node(node: Node, place: Any) -> None:
    exits = Exits(node)

    def use() -> list[PID]:
        pids = [process.spawn(mortal) for _ in range(3)]
        for pid in pids:
            process.groups.join("g", pid)
        process.groups.join("g", "{processes|none}")
        assert process.groups.members("g") == pids
        process.groups.leave("g", pids[0])
        process.groups.leave("g", pids[0])
        assert process.groups.members("g") == pids[1:]
        assert process.groups.members("no such group") == []
        with pytest.raises(NotAProcess, match="say which process you mean"):
            process.groups.join("g")
        with pytest.raises(NotAProcess, match="say which process you mean"):
            process.groups.leave("g")
        with pytest.raises(InvalidPID):
            process.groups.join("g", "{nonsense")
        with pytest.raises(ReservedTopic):
            process.groups.broadcast("g", "@x")
        with pytest.raises(PayloadError):
            process.groups.broadcast("g", "x", 3j)
        process.groups.broadcast("g", "return", "told")
        return pids

    first, *others = await place(use)
    for pid in others:
        assert await exits.of(pid) == Result("told")
    assert first in node.workers
    assert node.members("g") == []


async def test_what_works_on_the_node_is_awaited_in_coroutines_as_in_a_worker(node: Node) -> None:
    exits = Exits(node)
    pid = await aio_process.get_or_spawn("name", mortal)
    assert await aio_process.get_or_spawn("name", mortal) == pid
    assert await aio_process.registry.lookup("name") == pid
    assert await aio_process.fence("name") == process.fence("name")
    await aio_process.registry.register("another name", pid)
    await aio_process.registry.unregister("name")
    with pytest.raises(NameNotFound):
        await aio_process.registry.lookup("name")
    with pytest.raises(NotAProcess, match="say which process you mean"):
        await aio_process.registry.register("name")
    other = aio_process.spawn(mortal)
    for one in (pid, other):
        aio_process.groups.join("g", one)
    assert await aio_process.groups.members("g") == [pid, other]
    assert [member.pid for member in await aio_process.groups.roster("g")] == [pid, other]
    await aio_process.send("another name", "return", "by name")
    assert await exits.of(pid) == Result("by name")
    await aio_process.groups.broadcast("g", "return", "by group")
    assert await exits.of(other) == Result("by group")
    with pytest.raises(ReservedTopic):
        await aio_process.send(pid, "@x")
    last = aio_process.spawn(mortal)
    aio_process.cancel(last)
    assert await exits.of(last) == Result("closed")


@PLACES
async def test_malformed_pids_and_targets_are_told_at_the_caller_on_the_node(
    node: Node, place: Any
) -> None:
    def use() -> None:
        calls: list[Callable[[], Any]] = [
            lambda: process.send("{nonsense", "x"),
            lambda: process.send([node.pid(), "{nonsense"], "x"),
            lambda: process.cancel("{nonsense"),
            lambda: process.terminate("{nonsense"),
            lambda: process.groups.leave("g", "{nonsense"),
        ]
        for call in calls:
            with pytest.raises(InvalidPID, match=r"'\{nonsense' is not a PID; one looks like"):
                call()
        with pytest.raises(InvalidTarget):
            process.get_or_spawn("name", "nonsense")
        with pytest.raises(UnknownHost):
            process.get_or_spawn("name", give, "no such host")
        with pytest.raises(NameNotFound):
            process.registry.lookup("name")

    await place(use)
    assert not node.workers


async def test_messages_and_ends_for_nobody_are_dead_letters_on_the_node(node: Node) -> None:
    before = node.dead_letters
    for to in [*NOBODY, "no such name"]:
        process.send(to, "x")
        process.cancel(to)
        process.terminate(to)
    process.groups.broadcast("no such group", "x")
    assert node.dead_letters == before + 3 * 5


async def test_names_and_groups_of_connections_work_on_the_node(node: Node, front: str) -> None:
    async with connection(node, front) as (websocket, pid):
        process.registry.register("client", pid)
        process.groups.join("clients", pid)
        process.send("client", "ws.send", {"type": "text", "data": "by name"})
        process.groups.broadcast("clients", "ws.send", {"type": "text", "data": "by group"})
        assert await received(websocket) == "by name"
        assert await received(websocket) == "by group"
        process.cancel("client", "bye")
        assert process.groups.members("clients") == []
        with pytest.raises(NameNotFound):
            process.registry.lookup("client")
        assert await closed(websocket) == (1000, "bye")


NO_MAILBOX: Any = None
NO_CHANNEL: process.Channel[Any] = process.Channel(NO_MAILBOX, NO_MAILBOX)

WAITING: dict[str, Callable[[], Any]] = {
    "inbox": process.inbox,
    "events": process.events,
    "incoming": process.incoming,
    "ticks": lambda: process.ticks(1),
    "stopping": process.stopping,
    "listen": lambda: process.listen("x"),
    "unlisten": lambda: process.unlisten(NO_CHANNEL),
    "groups.watch": lambda: process.groups.watch("g"),
    "select": process.select,
    "drain": lambda: process.drain("{gateway|1}"),
    "exec": lambda: process.exec("m:f"),
    "spawn_monitored": lambda: process.spawn_monitored("m:f"),
    "spawn_linked": lambda: process.spawn_linked("m:f"),
    "spawn_linked_monitored": lambda: process.spawn_linked_monitored("m:f"),
    "set_options": lambda: process.set_options(trap_links=True),
    "get_options": process.get_options,
    **{
        name: lambda name=name: getattr(process, name)("{processes|1}")  # type: ignore[misc]
        for name in RELATIONS
    },
    "aio.inbox": aio_process.inbox,
    "aio.events": aio_process.events,
    "aio.incoming": aio_process.incoming,
    "aio.ticks": lambda: aio_process.ticks(1),
    "aio.stopping": aio_process.stopping,
    "aio.listen": lambda: aio_process.listen("x"),
    "aio.unlisten": lambda: aio_process.unlisten(NO_CHANNEL),  # type: ignore[arg-type]
    "aio.select": aio_process.select,
    "aio.drain": lambda: aio_process.drain("{gateway|1}"),
    "aio.exec": lambda: aio_process.exec("m:f"),
    "aio.groups.watch": lambda: aio_process.groups.watch("g"),
}


WORKING = {
    "call",
    "cancel",
    "fence",
    "get_or_spawn",
    "pid",
    "send",
    "send_after",
    "send_json",
    "spawn",
    "terminate",
}


async def test_each_function_either_works_on_the_node_or_is_for_processes_alone(
    node: Node,
) -> None:
    assert process.pid() == aio_process.pid() == node.pid()
    functions = set(process.__all__) - {"Channel", "registry", "groups"}
    assert functions == WORKING | {name for name in WAITING if "." not in name}


@pytest.mark.parametrize("name", WAITING)
async def test_what_only_a_process_can_do_raises_on_the_node(node: Node, name: str) -> None:
    async def call() -> None:
        await WAITING[name]()

    with pytest.raises(NotAProcess, match="only a process can do this") as raised:
        await call()
    assert "In an HTTP handler use process.spawn" in str(raised.value)
    assert not node.workers
