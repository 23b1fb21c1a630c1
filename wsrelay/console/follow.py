"""Log records and traced messages as they come, as many as a page can take."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Any, Final

from .looks import Look
from .node_socket import NodeAway, NodeRefuses, NodeSocket, UnknownRoute
from .watch import NodesWatch

__all__ = ["Followed", "follow"]

_AT_ONCE: Final = 200
"""Lines that are sent at once; of more, the last ones."""

_LONGEST: Final = 2000
"""Characters of a line."""

_AGAIN: Final = 1.0
"""Seconds until a node is asked again that could not be followed, or for new nodes."""

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


class Followed:
    """What has come since it was last taken."""

    def __init__(self, look: Look) -> None:
        self._least = _LEVELS[look.level]
        self._words = look.search.casefold().split() if look.page == "logs" else []
        self._lines: dict[str, deque[dict[str, Any]]] = {}
        self._came: Counter[str] = Counter()
        self._problem = ""

    def add(self, kind: str, line: dict[str, Any]) -> None:
        """Take a line of this kind, `log` or `trace`, if it is looked for."""
        if kind == "log" and not self._wanted(line):
            return
        self._lines.setdefault(kind, deque(maxlen=_AT_ONCE)).append(line)
        self._came[kind] += 1

    def fail(self, problem: str) -> None:
        """Take why nothing comes."""
        self._problem = problem

    def _wanted(self, record: dict[str, Any]) -> bool:
        if _LEVELS.get(record["level"], 20) < self._least:
            return False
        text = " ".join((record["text"], record.get("pid") or "", *record.get("names", ())))
        return all(word in text.casefold() for word in self._words)

    def take(self) -> dict[str, Any]:
        """Return what is to be told; it is empty if that is nothing."""
        told: dict[str, Any] = {
            kind: sorted(lines, key=lambda line: line["time"])
            for kind, lines in self._lines.items()
        }
        if left := self._came - Counter({kind: len(lines) for kind, lines in told.items()}):
            told["left"] = dict(left)
        if self._problem:
            told["problem"] = self._problem
        self._lines, self._came, self._problem = {}, Counter(), ""
        return told


async def follow(watch: NodesWatch, look: Look, followed: Followed) -> None:
    """Follow what the look asks for, on all nodes that have it, until this is cancelled."""
    seen: dict[str, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as tasks:
        while True:
            for node in [*watch.nodes.values()]:
                if node.key in seen or node.state != "up":
                    continue
                if look.page == "process" and not node.knows(look.of):
                    continue
                seen[node.key] = tasks.create_task(_records(node.socket, look, followed))
                if look.trace:
                    tasks.create_task(_trace(node.socket, look, followed))
            await asyncio.sleep(_AGAIN)


async def _records(socket: NodeSocket, look: Look, followed: Followed) -> None:
    query = {"of": look.of} if look.of else {}
    try:
        async for record in socket.lines("/logs", **query, follow="1"):
            followed.add("log", {**record, "text": record["text"][:_LONGEST]})
    except (NodeAway, NodeRefuses, UnknownRoute):
        pass  # it has ended, or knows no records of that process


async def _trace(socket: NodeSocket, look: Look, followed: Followed) -> None:
    payload = {"payload": "1"} if look.payload else {}
    try:
        async for message in socket.lines("/trace", of=look.of, **payload):
            followed.add("trace", message)
    except (NodeAway, NodeRefuses, UnknownRoute) as error:
        followed.fail(f"no trace: {error}")
    else:
        followed.fail("the trace has ended")
