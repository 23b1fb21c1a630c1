"""Clients of rooms that are harmed, and what each of them must see, whoever runs the rooms."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

from chaos_rooms import traps
from support import until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from wsrelay import PID, Result

SEED: Final = int(os.environ.get("WSRELAY_CHAOS_SEED", "20240229"))

Close = tuple[int, str]

ENDS_BY: Final[dict[str, str | None]] = {
    "SIGKILL": "killed",
    "SIGTERM": None,
    "cancel": None,
    "terminate": "terminated",
    "return": None,
    "raise": "error",
    "exit": "exit",
    "abort 0": None,
    "abort 3": "exit",
    "garbage": "error",
    "half a frame": "killed",
    "by another": "terminated",
}
"""What is done to a room, and the kind of the error that it ends with."""


@dataclasses.dataclass
class Stay:
    """One connection as its client saw it."""

    number: int
    room: str | None
    """Where it is, or is to be; None if the server does not say before the join."""
    websocket: ClientConnection
    joined: bool = False
    pid: PID | None = None
    rooms: list[str] = dataclasses.field(default_factory=list)
    asked: str | None = None
    """The room that it wants to move to and has not heard from yet."""
    sent: int = 0
    echoes: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    done: set[str] = dataclasses.field(default_factory=set)
    """What was done to the connection itself."""
    end: Close | None = None

    def take(self, topic: str, data: Any) -> None:
        match topic:
            case "joined":
                room, pid = data
                expected = self.asked if self.joined else self.room
                is_open = self.room is None and not self.joined
                assert is_open or room == expected, (
                    f"client {self.number} joined {room}, not {expected}"
                )
                self.room, self.pid, self.asked = room, PID(pid), None
                self.joined = True
                self.rooms.append(room)
            case "refused":
                self.asked = None
            case "echo":
                self.echoes.setdefault(data[0], []).append(data[1])

    @property
    def echoed(self) -> list[int]:
        return [number for numbers in self.echoes.values() for number in numbers]

    def expected(self, results: dict[str, Result]) -> set[Close]:
        """All closes that are right for what happened to it and to the rooms it may be in."""
        right: set[Close] = set()
        if self.done & {"aborted", "terminated"}:
            right.add((1006, ""))
        if "cancelled" in self.done:
            right.add((1000, "moved on"))
        if "left" in self.done:
            right.add((4001, "bye"))
        for room, joined in ((self.room, self.joined), (self.asked, False)):
            if room is not None and (result := results.get(room)) is not None:
                right |= closes(result, joined=joined)
        for room in self.rooms:
            # Rooms that trap links are linked to their clients, also to those that moved on
            # as long as they have not read of it.
            if (result := results.get(room)) is not None and result.error is not None:
                right.add((1011, "linked process ended"))
        return right


def closes(result: Result, *, joined: bool) -> set[Close]:
    """Contract section 2: how a room's end closes a client that it had, or had not, seen join."""
    if result.error is None:
        if result.value is None and not joined:  # os._exit(0) tells nobody what was read
            return {(1000, "target process exited"), (1013, "target process exited")}
        return {(1000 if joined else 1013, "target process exited")}
    if result.error.kind == "node_down":
        return {(1012, "target's node is gone")}
    reason = {
        "error": "crashed",
        "exit": "crashed",
        "killed": f"killed ({result.error.message})",
        "terminated": "killed (SIGKILL)",
        "link_down": "killed (link down)",
        "template_lost": "killed (template lost)",
    }[result.error.kind]
    return {(1011, f"target process {reason}")}


class Guest:
    """One client after another."""

    def __init__(self, chaos: Records, number: int) -> None:
        self.chaos = chaos
        self.random = random.Random(f"{SEED} {number}")  # noqa: S311 - a game
        self.stay: Stay | None = None
        self.works = False
        """It has seen, after the chaos, that its connection works."""
        self._comes = False

    @property
    def settled(self) -> bool:
        """Whether it is clear, after the chaos, how it stands: it is there, or it is gone."""
        return self.works or not self._comes

    async def run(self) -> None:
        while not self.chaos.over:
            self._comes = True
            try:
                async with self.chaos.enter(self) as websocket:
                    await self.visit(websocket)
            except (OSError, EOFError, InvalidHandshake, ConnectionClosed) as error:
                self.chaos.refused(self, error)
            finally:
                self.stay, self._comes = None, False

    async def visit(self, websocket: ClientConnection) -> None:
        assert websocket.response is not None
        room = websocket.response.headers.get("X-Room")
        stay = self.stay = Stay(len(self.chaos.stays), room, websocket)
        self.chaos.stays.append(stay)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.read(stay))
            with contextlib.suppress(ConnectionClosed):
                await self.talk(stay)
                await self.prove(stay)

    async def read(self, stay: Stay) -> None:
        try:
            while True:
                message = json.loads(await stay.websocket.recv())
                stay.take(message["topic"], message["data"])
        except ConnectionClosed as closed:
            frame = closed.rcvd
            stay.end = (frame.code, frame.reason) if frame else (1006, "")

    async def talk(self, stay: Stay) -> None:
        choose = self.random
        while stay.end is None and not self.chaos.over:
            what = choose.choices(("echo", "all", "move", "leave", "abort"), (80, 8, 8, 2, 1))[0]
            match what:
                case "echo":
                    await self.echo(stay)
                case "all":
                    await stay.websocket.send(json.dumps(["all", stay.sent]))
                case "move":
                    await self.move(stay)
                case "leave":
                    stay.done.add("left")
                    await stay.websocket.close(4001, "bye")
                case "abort":
                    stay.done.add("aborted")
                    stay.websocket.transport.abort()
            await asyncio.sleep(choose.uniform(0.02, 0.1))  # the pace of the traffic

    async def echo(self, stay: Stay) -> None:
        stay.sent += 1
        await stay.websocket.send(json.dumps(["echo", stay.sent]))

    async def move(self, stay: Stay) -> None:
        others = [room for room in self.chaos.open_rooms() if room != stay.room]
        if others and stay.joined and stay.asked is None:
            stay.asked = self.random.choice(others)
            await stay.websocket.send(json.dumps(["move", stay.asked]))

    async def prove(self, stay: Stay) -> None:
        """After the chaos: show that the connection works, and wait for its end."""
        moves = -1
        while stay.end is None and moves < len(stay.rooms):
            # A room that ends may have moved it on, and not have read what it had sent before.
            moves = len(stay.rooms)
            await self.echo(stay)
            await until(
                lambda: stay.end or stay.sent in stay.echoed or moves < len(stay.rooms),  # noqa: B023
                f"client {stay.number} has its echo or its close frame, {self.chaos.seed}",
            )
        if stay.end is not None:
            return
        self.works = True
        await self.chaos.closing.wait()
        if stay.end is None and stay.number % 2:
            stay.done.add("left")
            await stay.websocket.close(4001, "bye")


class Records(ABC):
    """What guests and rooms have done and seen, whoever runs the rooms."""

    seed = f"WSRELAY_CHAOS_SEED={SEED}"

    journal: Path

    def __init__(self, clients: int) -> None:
        self.random = random.Random(SEED)  # noqa: S311 - a game
        self.over = False
        self.closing = asyncio.Event()
        self.stays: list[Stay] = []
        self.guests = [Guest(self, number) for number in range(clients)]
        self.refusals: Counter[int] = Counter()
        self.deeds: dict[str, list[str]] = {}
        self.closed: set[str] = set()
        """Rooms that were cancelled when all was over."""

    @abstractmethod
    def enter(self, guest: Guest) -> AbstractAsyncContextManager[ClientConnection]:
        """Let a guest come to some room."""

    def refused(self, guest: Guest, error: Exception) -> None:
        """Note that a guest was not let in, or raise that."""
        del guest
        if not isinstance(error, InvalidStatus):
            raise error
        self.refusals[error.response.status_code] += 1

    @abstractmethod
    def open_rooms(self) -> Sequence[str]:
        """Return where guests may move to."""

    def lines(self, kind: str) -> list[list[Any]]:
        lines = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [rest for what, *rest in lines if what == kind]

    def stays_ended(self) -> Counter[int]:
        return Counter(stay.end[0] for stay in self.stays if stay.end is not None)

    def wrong_echoes(self) -> Iterator[str]:
        for stay in self.stays:
            echoed = stay.echoed
            if len(set(echoed)) < len(echoed):
                yield f"client {stay.number} heard an echo twice"
            for numbers in stay.echoes.values():
                if numbers != sorted(numbers):
                    yield f"client {stay.number} heard echoes in the wrong order"

    def wrong_links(self) -> Iterator[str]:
        for me, other, kind, number in self.lines("LINK_DOWN"):
            if not traps(number) or kind is None:
                yield f"room {me} (number {number}) got LINK_DOWN of {other} with {kind}"

    def wrong_stays(self) -> Iterator[str]:
        inside: set[tuple[str, str]] = set()
        lines = [json.loads(line) for line in self.journal.read_text().splitlines()]
        for what, *rest in lines:
            if what == "join":
                if tuple(rest) in inside:
                    yield f"{rest}: two joins without a leave"
                inside.add((rest[0], rest[1]))
            elif what == "leave":
                if tuple(rest) not in inside:
                    yield f"{rest}: a leave without a join"
                inside.discard((rest[0], rest[1]))
        stayed = {stay.pid for stay in self.stays if stay.end == (1000, "target process exited")}
        for room, pid in inside:
            if room in self.closed and room not in self.deeds and pid not in stayed:
                yield f"{room} saw no leave of {pid}"
