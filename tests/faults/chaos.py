"""One node whose guests come and go and whose rooms are killed, and what each of them must see."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

from chaos_guests import ENDS_BY, Guest, Records
from chaos_rooms import GUESTS, HELPERS, WATCHER, traps
from chaos_rooms import ROOMS as ALL_ROOMS
from starlette.requests import Request
from starlette.responses import Response
from support import client, until
from websockets.asyncio.client import ClientConnection

from wsrelay import PID, Node, RelayResponse, Result, wire
from wsrelay.kernel import ProcessState
from wsrelay.node import WorkerProcess

SECONDS: Final = 20.0
CLIENTS: Final = 30
ROOMS: Final = 10

HANDLERS = str(Path(__file__).with_name("chaos_rooms.py"))


class Chaos(Records):
    """The node under test, what was done to it, and what came of it."""

    watcher: PID
    url: str

    def __init__(self, node: Node) -> None:
        super().__init__(CLIENTS)
        self.node = node
        self.rooms: dict[str, int] = {}
        """Every room that ever was, with its number."""
        self.deck: list[str] = []
        self.certain: set[str] = set()
        """Rooms whose end is bound to come of what was done."""
        self.results: dict[str, Result] = {}

    def enter(self, guest: Guest) -> AbstractAsyncContextManager[ClientConnection]:
        return client(f"{self.url}/{guest.random.randrange(ROOMS)}")

    def open_rooms(self) -> list[PID]:
        return self.node.members(ALL_ROOMS)

    def open(self, journal: Path, url: str) -> None:
        """Begin to watch."""
        self.journal, self.url = journal, url
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

    def unheard(self) -> set[tuple[str, str]]:
        """Ends that a room which lives should have seen and has not."""
        watched = {(me, peer) for me, peer in self.lines("watches")}
        heard = {(me, peer) for me, peer, *_ in self.lines("EXIT")}
        living = {*self.living()}
        return {(me, peer) for me, peer in watched - heard if me in living and peer not in living}
