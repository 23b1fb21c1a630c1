"""What nodes say, made up."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from wsrelay.console.looks import Look
from wsrelay.console.node_socket import NodeSocket
from wsrelay.console.watched import WatchedConnection, WatchedProcess
from wsrelay.console.watched_node import WatchedNode

Answer = Callable[[str, dict[str, str]], Any]
"""Gives what a made-up node has at a path, for a query; None if there is nothing."""

PORTION = 1_000


def process_info(number: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "pid": f"{{local@processes|x.0-{number:05}}}",
        "os_pid": None,
        "host": "processes",
        "target": "/srv/rooms.py:room",
        "state": "running",
        "names": [f"room:{number}"],
        "parent": None,
        "uptime": 60.0,
        "mailbox": 0,
        "connections": 0,
        **values,
    }


def connection_info(number: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "pid": f"{{local@gateway|x.0-{number:05}}}",
        "target": "{local@processes|x.0-00000}",
        "client": ["127.0.0.1", 5000 + number],
        "path": "/ws",
        "subprotocol": None,
        "user": None,
        "uptime": 60.0,
        "messages": 0,
        "outbox": 0,
        "dropped": 0,
        "unfinished": 0,
        **values,
    }


def end_info(number: int = 1, **values: Any) -> dict[str, Any]:
    return {
        "number": number,
        "pid": f"{{local@processes|y.0-{number:05}}}",
        "names": ["room:ledger"],
        "target": "/srv/rooms.py:room",
        "host": "processes",
        "os_pid": None,
        "parent": None,
        "started": 900.0,
        "ended": 1000.0,
        "kind": "error",
        "how": "raised",
        "by": None,
        "reason": "",
        "message": "17 != 42",
        "traceback": "Traceback ...",
        "clients": 1,
        **values,
    }


def node_info(**values: Any) -> dict[str, Any]:
    return {
        "name": "local",
        "os_pid": 1,
        "version": "0",
        "draining": False,
        "dead_letters": 0,
        "hosts": [],
        "processes": [],
        "connections": [],
        "buffered": 0,
        "max_buffered": 0,
        "application": "",
        "addresses": [],
        "uptime": 5.0,
        **values,
    }


def watched(number: int = 0, *, now: float = 0.0, **values: Any) -> WatchedProcess:
    return WatchedProcess("n", process_info(number, **values), now, 1000.0)


def connected(number: int = 0, *, now: float = 0.0, **values: Any) -> WatchedConnection:
    return WatchedConnection("n", connection_info(number, **values), now, 1000.0)


def known_node(
    *processes: WatchedProcess, connections: tuple[WatchedConnection, ...] = (), **values: Any
) -> WatchedNode:
    node = WatchedNode("n", NodeSocket("/nowhere"))
    node.info = node_info(**values)
    node.processes = {one.pid: one for one in processes}
    node.connections = {one.pid: one for one in connections}
    return node


def look(page: Any = "home", **values: Any) -> Look:
    return Look(number=1, page=page, **values)


@contextlib.asynccontextmanager
async def answering(path: Path, answer: Answer) -> AsyncIterator[list[str]]:
    """A control socket that answers like this; gives the targets that it was asked for."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await reader.readline()).split()[1].decode()
        asked.append(target)
        parts = urlsplit(target)
        found = answer(parts.path, dict(parse_qsl(parts.query)))
        body = b"Not Found" if found is None else json.dumps(found).encode()
        writer.write(b"HTTP/1.1 %s\r\n\r\n" % (b"404 Not Found" if found is None else b"200 OK"))
        writer.write(body)
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield asked
    finally:
        server.close()
        path.unlink(missing_ok=True)


def node_of(processes: Callable[[], list[dict[str, Any]]], **values: Any) -> Answer:
    """A node that has these processes and nothing else, as an older one."""

    def answer(path: str, query: dict[str, str]) -> Any:
        if path == "/node":
            return node_info(**values)
        if path == "/processes":
            after = query.get("after", "")
            return [one for one in processes() if one["pid"] > after][:PORTION]
        return None

    return answer
