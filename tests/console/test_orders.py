"""What is ordered, as requests that the node takes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from made_up import answering, node_of

from wsrelay.console.looks import Act
from wsrelay.console.node_socket import NodeSocket, UnknownRoute
from wsrelay.console.orders import NotAnOrder, obey, stack
from wsrelay.console.watched_node import WatchedNode

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def obeying(path: Path) -> AsyncIterator[tuple[WatchedNode, list[tuple[str, Any]]]]:
    """A node that takes every order; gives the orders that it got."""
    orders: list[tuple[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(int(head.partition(b"Content-Length: ")[2]))
        orders.append((head.split()[1].decode(), json.loads(body)))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n null")
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield WatchedNode("n", NodeSocket(str(path), "b")), orders
    finally:
        server.close()
        path.unlink()


async def test_who_ends_something_is_named_where_the_node_keeps_that(tmp_path: Path) -> None:
    async with obeying(tmp_path / "s") as (node, orders):
        await obey(Act(id=1, what="cancel", of="x", reason="enough"), node)
        await obey(Act(id=2, what="close", of="x", code=4001, reason="out"), node)
        node.unknown.add("/ends")
        await obey(Act(id=3, what="kill", of="x"), node)
        await obey(Act(id=4, what="call", of="x", topic="t", payload=[1]), node)
    assert orders == [
        ("/cancel?at=b", {"to": "x", "by": "console", "reason": "enough"}),
        ("/close?at=b", {"to": "x", "by": "console", "code": 4001, "reason": "out"}),
        ("/kill?at=b", {"to": "x"}),
        ("/call?at=b", {"to": "x", "topic": "t", "payload": [1], "timeout": 5.0}),
    ]


async def test_what_an_older_node_cannot_do_is_not_known_to_it(tmp_path: Path) -> None:
    async with answering(tmp_path / "s", node_of(list)):
        node = WatchedNode("n", NodeSocket(str(tmp_path / "s")))
        with pytest.raises(UnknownRoute, match="not known to this node"):
            await stack("x", node)


async def test_what_has_ended_takes_no_orders() -> None:
    with pytest.raises(NotAnOrder, match="no node has x: it has ended"):
        await obey(Act(id=1, what="kill", of="x"), None)
