"""Clients of the halls of `cluster_halls`, and the books of what was said and heard."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from clusters import NodeProgram
from support import until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

__all__ = ["Books", "Visitor", "Visitors", "visiting"]


class Visitor:
    """One client, and all that it has said and heard."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.pid = ""
        self.halls: list[str] = []
        """Those that it has joined, in turn."""
        self.number = 0
        """That of the last message that it has sent."""
        self.heard: dict[str, list[int]] = {}
        """What others have said in the halls where it was, and itself, by who has said it."""
        self.end: tuple[int, str] | None = None
        self._websocket = websocket

    async def say(self, what: str = "say", argument: Any = None) -> None:
        self.number += 1
        await self._websocket.send(json.dumps([what, self.number, argument]))

    async def talk(self, over: asyncio.Event, pause: float = 0.02) -> None:
        """Say something every `pause` seconds until it is over."""
        while not over.is_set():
            await self.say()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), pause)

    async def listen(self) -> None:
        try:
            while True:
                what, *about = json.loads(await self._websocket.recv())
                if what == "joined":
                    hall, self.pid = about
                    self.halls.append(hall)
                else:
                    who, number = about
                    self.heard.setdefault(who, []).append(number)
        except ConnectionClosed as closed:
            frame = closed.rcvd
            self.end = (frame.code, frame.reason) if frame else (1006, "")


class Visitors:
    """Clients that are there until the block of `visiting` ends."""

    def __init__(self, stack: contextlib.AsyncExitStack, listening: asyncio.TaskGroup) -> None:
        self.all: list[Visitor] = []
        self._stack = stack
        self._listening = listening

    async def come(self, node: NodeProgram, **response: Any) -> Visitor:
        """Let one come to that node, and wait until it has joined a hall."""
        websocket = await self._stack.enter_async_context(node.client(**response))
        visitor = Visitor(websocket)
        self.all.append(visitor)
        self._listening.create_task(visitor.listen())
        await until(lambda: visitor.halls or visitor.end, "it is in the hall")
        assert visitor.end is None, visitor.end
        return visitor


@contextlib.asynccontextmanager
async def visiting() -> AsyncIterator[Visitors]:
    async with asyncio.TaskGroup() as listening, contextlib.AsyncExitStack() as stack:
        yield Visitors(stack, listening)


class Books:
    """What the halls have written down."""

    def __init__(self, journal: Path) -> None:
        journal.touch()
        self._journal = journal
        self._read = 0
        self._lines: list[list[Any]] = []

    def lines(self, *kinds: str) -> list[list[Any]]:
        """Return what has happened, PID of the hall, who it was, and what that was about."""
        with self._journal.open("rb") as file:
            file.seek(self._read)
            whole, end, _ = file.read().rpartition(b"\n")  # it may be in the middle of a line
        self._read += len(whole) + len(end)
        self._lines += [json.loads(line) for line in whole.splitlines()]
        return [line for line in self._lines if line[0] in kinds]

    def heard(self) -> dict[tuple[str, str], list[int]]:
        """Return the numbers that each hall has heard of each who talks."""
        heard: dict[tuple[str, str], list[int]] = {}
        for _, hall, who, number in self.lines("heard"):
            heard.setdefault((hall, who), []).append(number)
        return heard

    def visits(self) -> Iterator[tuple[str, str, list[int]]]:
        """Each visit that has ended or has not: the hall, who it was, and what it has said."""
        open_visits: dict[tuple[str, str], list[int]] = {}
        for what, hall, who, *about in self.lines("join", "heard", "leave"):
            match what:
                case "join":
                    assert (hall, who) not in open_visits, f"{who} has joined {hall} twice"
                    open_visits[hall, who] = []
                case "heard":
                    open_visits[hall, who].append(*about)
                case "leave":
                    yield hall, who, open_visits.pop((hall, who))
        for (hall, who), said in open_visits.items():
            yield hall, who, said

    def inside(self) -> dict[str, Counter[str]]:
        """Return how often each visitor is in which hall: joins without leaves."""
        inside: dict[str, Counter[str]] = {}
        for what, hall, who in self.lines("join", "leave"):
            inside.setdefault(hall, Counter())[who] += 1 if what == "join" else -1
        return {hall: +there for hall, there in inside.items() if +there}
