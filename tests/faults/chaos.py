"""Guests that come and go, rooms that are killed, and what each of them must see."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from chaos_rooms import GUESTS, HELPERS, WATCHER, traps
from chaos_rooms import ROOMS as ALL_ROOMS
from starlette.requests import Request
from starlette.responses import Response
from support import client, until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from wsrelay import PID, Node, RelayResponse, Result, wire
from wsrelay.kernel import ProcessState
from wsrelay.node import WorkerProcess

SECONDS: Final = 20.0
SEED: Final = int(os.environ.get("WSRELAY_CHAOS_SEED", "20240229"))
CLIENTS: Final = 30
ROOMS: Final = 10

HANDLERS = str(Path(__file__).with_name("chaos_rooms.py"))

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
    room: str
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
                assert room == expected, f"client {self.number} joined {room}, not {expected}"
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
    reason = {
        "error": "crashed",
        "exit": "crashed",
        "killed": f"killed ({result.error.message})",
        "terminated": "killed (SIGKILL)",
        "link_down": "killed (link down)",
    }[result.error.kind]
    return {(1011, f"target process {reason}")}


class Guest:
    """One client after another."""

    def __init__(self, chaos: Chaos, number: int) -> None:
        self.chaos = chaos
        self.random = random.Random(f"{SEED} {number}")  # noqa: S311 - a game
        self.stay: Stay | None = None
        self.works = False
        """It has seen, after the chaos, that its connection works."""

    async def run(self, url: str) -> None:
        while not self.chaos.over:
            try:
                number = self.random.randrange(ROOMS)
                async with client(f"{url}/{number}") as websocket:
                    await self.visit(websocket)
            except InvalidStatus as refused:
                self.chaos.refusals[refused.response.status_code] += 1
            finally:
                self.stay = None

    async def visit(self, websocket: ClientConnection) -> None:
        assert websocket.response is not None
        room = websocket.response.headers["X-Room"]
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
        others = [room for room in self.chaos.node.members(ALL_ROOMS) if room != stay.room]
        if others and stay.joined and stay.asked is None:
            stay.asked = self.random.choice(others)
            await stay.websocket.send(json.dumps(["move", stay.asked]))

    async def prove(self, stay: Stay) -> None:
        """After the chaos: show that the connection works, and wait for its end."""
        await self.echo(stay)
        await until(
            lambda: stay.end or stay.sent in stay.echoed,
            f"client {stay.number} has its echo or its close frame, {self.chaos.seed}",
        )
        self.works = stay.end is None
        await self.chaos.closing.wait()
        if stay.end is None and stay.number % 2:
            stay.done.add("left")
            await stay.websocket.close(4001, "bye")


class Chaos:
    """The node under test, what was done to it, and what came of it."""

    seed = f"WSRELAY_CHAOS_SEED={SEED}"

    watcher: PID
    journal: Path

    def __init__(self, node: Node) -> None:
        self.node = node
        self.random = random.Random(SEED)  # noqa: S311 - a game
        self.over = False
        self.closing = asyncio.Event()
        self.stays: list[Stay] = []
        self.guests = [Guest(self, number) for number in range(CLIENTS)]
        self.refusals: Counter[int] = Counter()
        self.rooms: dict[str, int] = {}
        """Every room that ever was, with its number."""
        self.deck: list[str] = []
        self.deeds: dict[str, list[str]] = {}
        self.certain: set[str] = set()
        """Rooms whose end is bound to come of what was done."""
        self.closed: set[str] = set()
        """Rooms that were cancelled when all was over."""
        self.results: dict[str, Result] = {}

    def open(self, journal: Path) -> None:
        """Begin to watch."""
        self.journal = journal
        journal.touch()
        node = self.node
        self.watcher = node.get_or_spawn(WATCHER, f"{HANDLERS}:watch", None, str(journal))
        node.engine.on_exit.append(self._note)

    def _note(self, process: WorkerProcess, result: Result) -> None:
        assert process.pid not in self.results, f"{process.pid} has ended twice"
        self.results[process.pid] = wire.PackedResult.of(result).opened()

    async def close(self) -> None:
        """Let half of the clients go, and cancel the rooms around the others."""
        self.closing.set()
        leaving = {stay.pid for stay in self.stays if stay.number % 2}
        await until(lambda: not leaving & set(self.node.connections), "half of them are gone")
        for pid in self.living():
            self.closed.add(pid)
            self.node.cancel(pid, "over")

    def answer(self, request: Request) -> Response:
        number = int(request.path_params["path"])
        pid = self.node.get_or_spawn(f"room {number}", f"{HANDLERS}:room", None, number)
        self.meet(pid, number)
        return RelayResponse(pid, headers={"X-Room": pid})

    def meet(self, pid: PID, number: int) -> None:
        if pid not in self.rooms:
            self.rooms[pid] = number
            self.node.send(WATCHER, "watch", pid)

    async def reign(self) -> None:
        """Do harm until the time is over; after each deed nobody dead may be seen."""
        loop = asyncio.get_running_loop()
        end = loop.time() + SECONDS
        while loop.time() < end:
            self.look()
            match self.random.choices(
                ("room", "again", "connection", "helper", "trouble", "new"), (60, 5, 12, 8, 12, 5)
            )[0]:
                case "room":
                    self.end_room([pid for pid in self.living() if pid not in self.deeds])
                case "again":
                    self.end_room(self.living())
                case "connection":
                    self.end_connection()
                case "helper":
                    self.end_helper()
                case "trouble":
                    self.trouble()
                case "new":
                    pid = self.node.spawn(f"{HANDLERS}:room", None, ROOMS)
                    self.meet(pid, ROOMS)
                    self.end_room([pid])
            await asyncio.sleep(self.random.uniform(0.02, 0.15))  # the pace of the harm
        self.over = True

    def living(self) -> list[PID]:
        return [pid for pid in self.node.workers if pid in self.rooms]

    def state(self, pid: PID) -> ProcessState:
        return self.node.kernel.processes[pid].state

    def end_room(self, victims: list[PID]) -> None:
        if not victims:
            return
        pid = self.random.choice(victims)
        if not self.deck:  # drawn like cards, so that none is left out
            self.deck = self.random.sample(list(ENDS_BY), len(ENDS_BY))
        deed = self.deck[-1]
        node, os_pid = self.node, self.node.workers[pid]
        ready = self.state(pid) is ProcessState.RUNNING
        if (deed == "SIGKILL" and os_pid is None) or (deed == "SIGTERM" and not ready):
            return  # it has no OS process yet, or one that ignores SIGTERM until its handler runs
        self.deck.pop()
        # Orders to a room that has been cancelled are lost; it ends all the same.
        self.deeds.setdefault(pid, []).append(deed)
        if deed != "by another":
            self.certain.add(pid)
        match deed:
            case "SIGKILL" | "SIGTERM":
                assert os_pid is not None
                with contextlib.suppress(ProcessLookupError):
                    os.kill(os_pid, getattr(signal, deed))
            case "cancel":
                node.cancel(pid, "chaos")
            case "terminate":
                node.terminate(pid)
            case "by another":
                node.send(self.random.choice(self.living()), "do", ["terminate", pid])
            case "abort 0" | "abort 3":
                node.send(pid, "do", ["abort", int(deed[-1])])
            case _:
                node.send(pid, "do", [deed])

    def end_connection(self) -> None:
        stays = [guest.stay for guest in self.guests if guest.stay and guest.stay.pid]
        if not stays:
            return
        stay = self.random.choice(stays)
        assert stay.pid is not None
        match self.random.choice(["cancel", "terminate", "abort"]):
            case "cancel":
                stay.done.add("cancelled")
                self.node.cancel(stay.pid, "moved on")
            case "terminate":
                stay.done.add("terminated")
                self.node.terminate(stay.pid)
            case "abort":
                stay.done.add("aborted")
                stay.websocket.transport.abort()

    def end_helper(self) -> None:
        if helpers := self.node.members(HELPERS):
            pid = self.random.choice(helpers)
            os_pid = self.node.workers[pid]
            with contextlib.suppress(ProcessLookupError):
                if os_pid is not None and self.random.random() < 0.5:
                    os.kill(os_pid, signal.SIGKILL)
                else:
                    self.node.terminate(pid)

    def trouble(self) -> None:
        if rooms := self.living():
            order = self.random.choice([["stall", 0.2], ["child"], ["exec", 0.1]])
            self.node.send(self.random.choice(rooms), "do", order)

    def look(self) -> None:
        """Names and groups show the living only."""
        groups = [GUESTS, HELPERS, ALL_ROOMS, *(f"{GUESTS} {n}" for n in range(ROOMS + 1))]
        seen = {pid for group in groups for pid in self.node.members(group)}
        names = self.node.kernel.names
        seen |= {pid for n in range(ROOMS) if (pid := names.get(f"room {n}")) is not None}
        living = {*self.node.workers, *self.node.connections}
        assert seen <= living, f"{self.seed}: {seen - living}"
        cancelled = {pid for pid in seen if self.state(pid) is ProcessState.CANCELLING}
        assert not cancelled, f"{self.seed}: {cancelled}"

    def lines(self, kind: str) -> list[list[Any]]:
        lines = [json.loads(line) for line in self.journal.read_text().splitlines()]
        return [rest for what, *rest in lines if what == kind]

    # The books

    def problems(self) -> Iterator[str]:
        yield from self.wrong_closes()
        yield from self.wrong_echoes()
        yield from self.wrong_ends()
        yield from self.wrong_exits()
        yield from self.wrong_links()
        yield from self.wrong_stays()

    def wrong_closes(self) -> Iterator[str]:
        for stay in self.stays:
            right = stay.expected(self.results)
            if stay.end not in right:
                rooms = [stay.room, stay.asked]
                what = [
                    (room, self.deeds.get(room), self.results.get(room)) for room in rooms if room
                ]
                yield (
                    f"client {stay.number} {stay.pid} saw {stay.end}, right: {right}, joined: "
                    f"{stay.joined}, done: {stay.done}, rooms: {stay.rooms}, now: {what}"
                )
        if wrong := set(self.refusals) - {503}:
            yield f"upgrades were refused with {wrong}"

    def wrong_echoes(self) -> Iterator[str]:
        for stay in self.stays:
            echoed = stay.echoed
            if len(set(echoed)) < len(echoed):
                yield f"client {stay.number} heard an echo twice"
            for numbers in stay.echoes.values():
                if numbers != sorted(numbers):
                    yield f"client {stay.number} heard echoes in the wrong order"

    def wrong_ends(self) -> Iterator[str]:
        for room, number in self.rooms.items():
            result = self.results[room]
            kind = None if result.error is None else str(result.error.kind)
            kinds = {ENDS_BY[deed] for deed in self.deeds.get(room, ())}
            kinds |= {None} if room in self.closed else set()
            if kind == "link_down" and not traps(number):
                continue
            if kind not in kinds:
                yield f"room {room} ended with {result}; done to it: {self.deeds.get(room)}"

    def wrong_exits(self) -> Iterator[str]:
        monitored = Counter(pid for (pid,) in self.lines("monitor"))
        exits = Counter(pid for pid, _ in self.lines("exit"))
        if monitored != exits:
            yield f"of the watcher's monitors, {monitored - exits} saw no exit"
            yield f"of the watcher's exits, {exits - monitored} had no monitor"
        if missing := set(self.rooms) - set(exits):
            yield f"the watcher saw no exit of {missing}"
        if unseen := {stay.pid for stay in self.stays if stay.pid} - set(exits):
            yield f"the watcher saw no exit of {unseen}"
        for pid, kind in self.lines("exit"):
            result = self.results.get(pid)
            right = None if result is None or result.error is None else str(result.error.kind)
            if pid in self.rooms and kind not in (right, "noproc"):
                yield f"the watcher saw {pid} end with {kind}, it was {right}"
        watched = {(me, peer) for me, peer in self.lines("watches")}
        heard = Counter((me, peer) for me, peer, *_ in self.lines("EXIT"))
        if odd := {pair for pair, count in heard.items() if count > 1 or pair not in watched}:
            yield f"rooms saw ends of other rooms twice or without a monitor: {odd}"

    def heard_of_all(self) -> bool:
        watched = {pid for (pid,) in self.lines("monitor")}
        return watched == {pid for pid, _ in self.lines("exit")} >= set(self.rooms)

    def stays_ended(self) -> Counter[int]:
        return Counter(stay.end[0] for stay in self.stays if stay.end is not None)

    def unheard(self) -> set[tuple[str, str]]:
        """Ends that a room which lives should have seen and has not."""
        watched = {(me, peer) for me, peer in self.lines("watches")}
        heard = {(me, peer) for me, peer, *_ in self.lines("EXIT")}
        living = {*self.living()}
        return {(me, peer) for me, peer in watched - heard if me in living and peer not in living}

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
