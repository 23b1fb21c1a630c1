"""What `wsrelay run` says of the process of a client, in each of its scopes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import rooms
from support import client, processes, received, room, serving, until

from wsrelay import Node
from wsrelay.gateway.script import Scope, ScriptOptions, script_app
from wsrelay.node import WorkerProcess
from wsrelay.relay.middleware import WebSocketRelay
from wsrelay.session.outbox import Overflow
from wsrelay.values.targets import TargetEntry

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    # The first stream of uvloop opens a descriptor that the loop keeps: here, and not in a test.
    (await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)).close()
    async with Node(hosts=[processes()], entries={"echo": TargetEntry(room(rooms.echo))}) as node:
        await node.loaded()
        yield node


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    yield shared
    shared.terminate_all()
    await until(lambda: not shared.workers and not shared.connections, "all are gone")


def script(scope: Scope, entry: str | None = None) -> ScriptOptions:
    return ScriptOptions(target=room(rooms.echo), scope=scope, room_linger=60.0, entry=entry)


async def visited(node: Node, scope: Scope, entry: str | None = None) -> WorkerProcess:
    """Come, be heard and go; gives the process that was met."""
    app = script_app(node, script(scope, entry))
    async with serving(app) as url, client(f"{url}/ws/blue") as websocket:
        await websocket.send("hello")
        assert await received(websocket) == "hello"
        [process] = node.engine.processes.values()
    await until(lambda: not node.connections)
    return process


async def test_a_process_of_a_connection_ends_with_it(node: Node) -> None:
    process = await visited(node, Scope.CONNECTION)
    await until(lambda: process.pid not in node.workers, "it has ended")


@pytest.mark.parametrize(
    ("scope", "name", "linger"), [(Scope.ROOM, "room:blue", 60.0), (Scope.SHARED, "shared", None)]
)
async def test_a_room_has_its_linger_and_what_all_share_lives_on(
    node: Node, scope: Scope, name: str, linger: float | None
) -> None:
    process = await visited(node, scope)
    assert node.lookup(name) == process.pid
    assert process.end_when_empty == linger


@pytest.mark.parametrize(("scope", "name"), [(Scope.ROOM, "room:blue"), (Scope.SHARED, "shared")])
async def test_with_an_entry_names_begin_with_it_as_other_nodes_may_run_other_scripts(
    node: Node, scope: Scope, name: str
) -> None:
    process = await visited(node, scope, "echo")
    assert node.lookup(f"echo/{name}") == process.pid
    assert process.target == "echo"


@pytest.mark.parametrize(
    ("scope", "policy"),
    [
        (Scope.CONNECTION, Overflow.PAUSE),
        (Scope.ROOM, Overflow.CLOSE),
        (Scope.SHARED, Overflow.CLOSE),
    ],
)
def test_only_a_process_that_has_one_client_waits_for_it(scope: Scope, policy: Overflow) -> None:
    relay = script_app(Node(), script(scope))
    assert isinstance(relay, WebSocketRelay)
    assert relay._limits.overflow is policy
