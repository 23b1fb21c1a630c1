"""What processes do with their clients, in both faces and from the node."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import client_handlers
import pytest
import rooms
from exits import Exits
from one_node import BOTH, connection, left_as_found, one_node
from relating import Face
from support import client, closed, endpoint, received, room, serving, until
from websockets.asyncio.client import ClientConnection

from wsrelay import PID, Client, Node, NotAProcess, RelayResponse, WebSocketRelay, aio, process
from wsrelay.aio import process as aio_process

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[Node]:
    async with one_node() as node:
        yield node


@pytest.fixture(scope="module")
async def front(shared: Node) -> AsyncIterator[str]:
    app = endpoint(lambda request: RelayResponse(request.query_params["target"], metadata=ANN))
    async with serving(WebSocketRelay(app, node=shared)) as url:
        yield url


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


ANN = {"user": "ann"}


@contextlib.asynccontextmanager
async def joined(front: str, pid: PID) -> AsyncIterator[ClientConnection]:
    async with client(f"{front}/?target={pid}") as websocket:
        yield websocket


async def say(websocket: ClientConnection, order: str, argument: Any = None) -> None:
    await websocket.send(json.dumps([order, argument]))


@BOTH
async def test_a_client_is_sent_text_bytes_and_json_and_closed(
    node: Node, front: str, face: Face
) -> None:
    exits = Exits(node)
    pid = node.spawn(face(client_handlers.act))
    async with joined(front, pid) as websocket:
        assert await received(websocket) == "welcome ann"
        assert await received(websocket) == b"welcome"
        kind = Client if face(client_handlers.act) is client_handlers.act.sync else aio.Client
        assert json.loads(await received(websocket)) == {"kind": kind.__module__}
        await say(websocket, "error", 3)
        await say(websocket, "drain")
        await say(websocket, "all", {"a": 1})
        assert json.loads(await received(websocket)) == {"a": 1}
        await say(websocket, "close", "bye")
        assert await received(websocket) == "last words"
        assert await closed(websocket) == (4001, "bye")
    *errors, code = (await exits.of(pid)).value
    assert code == 4001
    assert [error.partition(";")[0] for error in errors] == [
        "PayloadError: data: 3 has the type int, and is neither str nor bytes",
        "PayloadError: value['a'][0]: builtins.object is not data",
        "PayloadError: value[0]: builtins.complex is not data",
    ]


@BOTH
async def test_a_client_can_be_transferred(node: Node, front: str, face: Face) -> None:
    exits = Exits(node)
    pid, other = node.spawn(face(client_handlers.act)), node.spawn(face(client_handlers.act))
    async with joined(front, pid) as websocket:
        for _ in range(3):
            await received(websocket)
        await say(websocket, "move", other)
        assert await received(websocket) == "welcome moved"
    assert (await exits.of(pid)).value == [1000]


@BOTH
async def test_metadata_are_those_that_were_in_force_for_the_message(
    node: Node, front: str, face: Face
) -> None:
    exits = Exits(node)
    pid = node.spawn(face(client_handlers.renamed))
    async with joined(front, pid) as websocket:
        await websocket.send("one")
        assert await received(websocket) == "renamed"
        await websocket.send("two")
        assert (await exits.of(pid)).value == [ANN, {"user": "bob"}, True]


@BOTH
async def test_what_a_client_cannot_use_is_logged_once_with_what_is_right(
    node: Node, front: str, face: Face, caplog: pytest.LogCaptureFixture
) -> None:
    pid = node.spawn(face(client_handlers.misuse))
    async with joined(front, pid) as websocket:
        await websocket.send("go")
        assert await received(websocket) == "done"
    await until(lambda: pid not in node.workers)
    told = [line for line in caplog.messages if line.startswith(f"{pid} sent ws.")]
    right = [
        ("ws.send", 'a payload is {"type": "text", "data": str} or {"type": "binary", "data": b'),
        ("ws.send", "Expected `object`, got `str`"),
        ("ws.close", "code 1005 may not be sent; RFC 6455 allows 1000-1003, 1007-1014, 3000-4"),
        ("ws.control", "a payload may have target_pid, message_topic, heartbeat_interval, meta"),
        ("ws.control", "heartbeat_interval: '10 s' is not a duration; write it like '30s', "),
    ]
    assert len(told) == len(right), told
    for line, (topic, words) in zip(told, right, strict=True):
        assert line.startswith(f"{pid} sent {topic} to ")
        assert words in line
        assert line.endswith("(told once)")


async def test_clients_are_acted_on_from_the_node_in_threads_and_in_coroutines(
    node: Node, front: str
) -> None:
    async with connection(node, front) as (websocket, pid):
        one, other = Client(pid), aio.Client(pid)
        one.send("a")
        one.send_json({"b": 1})
        process.send_json([pid], {"c": 1})
        await asyncio.to_thread(one.send_json, {"d": 1})
        await asyncio.to_thread(process.send_json, pid, {"e": 1})
        await other.send("f")
        await other.send_json({"g": 1})
        await aio_process.send_json([pid, pid], {"h": 1})
        await aio_process.send(pid, "ws.send", rooms.text("i"))
        for wait in (one.drain, lambda: asyncio.run(other.drain())):
            with pytest.raises(NotAProcess):
                await asyncio.to_thread(wait)
        one.transfer(node.spawn(room(rooms.echo)))
        one.close(4002, "by the node")
        seen = [await received(websocket) for _ in range(10)]
        expected = '["a",{"b":1},{"c":1},{"d":1},{"e":1},"f",{"g":1},{"h":1},{"h":1},"i"]'
        texts = [text if text.startswith("{") else json.dumps(text) for text in map(str, seen)]
        assert json.loads(f"[{','.join(texts)}]") == json.loads(expected)
        assert await closed(websocket) == (4002, "by the node")
