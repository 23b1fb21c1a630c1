"""Monitors of connections and links to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import rooms
from connection_handlers import (
    close_connection,
    end_connection,
    link_connection,
    link_connection_and_end,
    link_connection_and_wait,
    watch_connection,
)
from exits import Exits
from one_node import BOTH, connection, front_of, left_as_found, one_node
from relating import Face
from support import closed, received, room, until
from websockets.asyncio.client import ClientConnection

from wsrelay import Node

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


# Monitors of connections


async def close_without_code(websocket: ClientConnection) -> None:
    websocket.protocol.send_close()
    for data in websocket.protocol.data_to_send():
        websocket.transport.write(data)


async def vanish(websocket: ClientConnection) -> None:
    websocket.transport.abort()


Leave = Callable[[ClientConnection], Any]

LEAVES: list[tuple[Leave, int, str, str | None]] = [
    (lambda websocket: websocket.close(1000, "bye"), 1000, "bye", None),
    (lambda websocket: websocket.close(1001), 1001, "", None),
    (lambda websocket: websocket.close(3000, "x"), 3000, "x", None),
    (lambda websocket: websocket.close(4999, "x"), 4999, "x", None),
    (close_without_code, 1005, "", None),
    (lambda websocket: websocket.close(1002, "x"), 1002, "x", "error"),
    (lambda websocket: websocket.close(1011, "x"), 1011, "x", "error"),
    (vanish, 1006, "", "disconnected"),
]


@BOTH
@pytest.mark.parametrize(("leave", "code", "reason", "kind"), LEAVES)
async def test_a_connection_s_end_is_its_exit(
    node: Node, front: str, face: Face, leave: Leave, code: int, reason: str, kind: str | None
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        watcher = node.spawn(face(watch_connection), None, pid)
        assert await received(websocket) == "watching"
        await leave(websocket)
        first, second, more = (await exits.of(watcher)).value
    assert (first["kind"], first["sender"]) == ("EXIT", pid)
    assert first["value"] == {"code": code, "reason": reason}
    assert first["error"] == kind
    assert (second["sender"], second["error"], more) == (pid, "noproc", [])


@BOTH
@pytest.mark.parametrize(
    ("payload", "code", "reason", "kind"),
    [
        (None, 1000, "", None),
        ({"code": 4000, "reason": "enough"}, 4000, "enough", None),
        ({"code": 1011, "reason": "broken"}, 1011, "broken", "error"),
        ({"code": 1013}, 1013, "", "error"),
    ],
)
async def test_a_connection_that_a_process_closes_ends_with_that_code(
    node: Node, front: str, face: Face, payload: Any, code: int, reason: str, kind: str | None
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        closer = node.spawn(face(close_connection), None, pid, payload)
        assert await closed(websocket) == (code, reason)
        (event,) = (await exits.of(closer)).value
    assert event["value"] == {"code": code, "reason": reason}
    assert event["error"] == kind


@BOTH
async def test_the_end_of_a_target_is_the_exit_of_its_connections(
    node: Node, front: str, face: Face
) -> None:
    exits = Exits(node)
    target = node.spawn(room(rooms.echo))
    async with connection(node, front, target) as (websocket, pid):
        watcher = node.spawn(face(watch_connection), None, pid)
        assert await received(websocket) == "watching"
        node.terminate(target)
        assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
        event = (await exits.of(watcher)).value[0]
    assert event["value"] == {"code": 1011, "reason": "target process killed (SIGKILL)"}
    assert event["error"] == "error"


@BOTH
async def test_a_cancelled_connection_closes_normally_and_loses_its_names(
    node: Node, front: str, face: Face
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        ender = node.spawn(face(end_connection), None, "cancel", pid, "that is all")
        assert await closed(websocket) == (1000, "that is all")
        event, lookup, members = (await exits.of(ender)).value
    assert event["value"] == {"code": 1000, "reason": "that is all"}
    assert (event["sender"], event["error"], members) == (pid, None, [])
    assert lookup.startswith("NameNotFound")


@BOTH
async def test_a_terminated_connection_is_dropped_at_once(
    node: Node, front: str, face: Face
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        ender = node.spawn(face(end_connection), None, "terminate", pid)
        assert (await closed(websocket))[0] == 1006
        event, lookup, members = (await exits.of(ender)).value
    assert event["value"] == {"code": 1006, "reason": ""}
    assert (event["sender"], members) == (pid, [])
    assert lookup.startswith("NameNotFound")
    assert event["error"] == "terminated"


# Links to connections


@BOTH
@pytest.mark.parametrize(
    ("leave", "kind"),
    [
        (lambda websocket: websocket.close(1011, "x"), "error"),
        (vanish, "disconnected"),
    ],
)
async def test_a_connection_that_ends_abnormally_is_a_link_down(
    node: Node, front: str, face: Face, leave: Leave, kind: str
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        trapping = node.spawn(face(link_connection), None, pid, True)
        assert await received(websocket) == "watching"
        plain = node.spawn(face(link_connection), None, pid, False)
        assert await received(websocket) == "watching"
        await leave(websocket)
        event, more = (await exits.of(trapping)).value
        error = await exits.error(plain)
    assert (event["kind"], event["sender"], event["error"]) == ("LINK_DOWN", pid, kind)
    assert more == []
    assert (error.kind, error.message) == ("link_down", f"linked process {pid} ended ({kind})")


@BOTH
@pytest.mark.parametrize("code", [1000, 1001, 4000])
async def test_a_connection_that_ends_normally_takes_nobody_along(
    node: Node, front: str, face: Face, code: int
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        linked = node.spawn(face(link_connection_and_wait), None, pid)
        assert await received(websocket) == "watching"
        await websocket.close(code)
        await until(lambda: pid not in node.connections, "the connection has ended")
    node.send(linked, "x", "unharmed")
    assert (await exits.of(linked)).value == "unharmed"


@BOTH
@pytest.mark.parametrize("way", ["raise", "kill"])
async def test_a_linked_worker_that_dies_closes_the_connection(
    node: Node, front: str, face: Face, way: str
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        watcher = node.spawn(watch_connection.sync, None, pid)
        assert await received(websocket) == "watching"
        node.spawn(face(link_connection_and_end), None, pid, way)
        assert await received(websocket) == "watching"
        assert await closed(websocket) == (1011, "linked process ended")
        event = (await exits.of(watcher)).value[0]
    assert event["value"] == {"code": 1011, "reason": "linked process ended"}
    assert event["error"] is not None


@BOTH
@pytest.mark.parametrize("way", ["return", "unlink"])
async def test_a_worker_that_returns_or_has_unlinked_leaves_the_connection_alone(
    node: Node, front: str, face: Face, way: str
) -> None:
    exits = Exits(node)
    async with connection(node, front) as (websocket, pid):
        worker = node.spawn(face(link_connection_and_end), None, pid, way)
        assert await received(websocket) == "watching"
        await exits.of(worker)
        await websocket.send("still here")
        assert await received(websocket) == "still here"


async def test_a_target_linked_to_its_connection_closes_it_with_its_own_cause(
    node: Node, front: str
) -> None:
    """The target's end says more than the link's."""
    pid = node.spawn(room(rooms.echo))
    async with connection(node, front, pid) as (websocket, me):
        node.kernel.link(pid, me)
        node.terminate(pid)
        assert await closed(websocket) == (1011, "target process killed (SIGKILL)")
