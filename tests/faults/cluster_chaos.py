"""Three nodes with rooms and guests, everything of which is killed, NATS as well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import chaos_rooms
from chaos_guests import ENDS_BY, Guest, Records, Stay
from chaos_rooms import GUESTS, HELPERS, WATCHER, traps
from chaos_rooms import ROOMS as ALL_ROOMS
from clusters import Failed, NodeCluster, NodeProgram
from nats_servers import NatsServer
from support import TIMEOUT, client, until
from websockets.asyncio.client import ClientConnection

from wsrelay import PID, Result
from wsrelay.values.message import ExitError, ExitKind

SECONDS: Final = float(os.environ.get("WSRELAY_CHAOS_SECONDS", "6"))
CLIENTS: Final = 18
ROOMS: Final = 8
NODES: Final = ("a", "b", "c")

ENTRIES: Final = {"place": f"{chaos_rooms.__file__}:room", "watch": f"{chaos_rooms.__file__}:watch"}

DEEDS: Final = {"room": 40, "connection": 10, "helper": 6, "trouble": 8}
"""What is done again and again to whom, and how often in comparison."""

DISASTERS: Final = ("node", "nats", "template")
"""What is done now and then, in turn."""

_UNDECIDED: Final = {1000, 1011, 1012, 1013}
"""How those are closed who have never heard of a room."""


class ClusterChaos(Records):
    """What is done to the nodes, and what comes of it; one of them is spared, with the watcher."""

    def __init__(self, cluster: NodeCluster, server: NatsServer, journal: Path) -> None:
        super().__init__(CLIENTS)
        self.journal = journal
        self.cluster = cluster
        self.keeper = self.random.choice(NODES)
        """The node that is spared."""
        self.disasters: list[str] = []
        self.members: list[str] = []
        """The rooms that there are, as some node has known lately."""
        self.rooms: set[str] = set()
        """All that have ever been known."""
        self.homes: dict[int, NodeProgram] = {}
        """The node of each stay."""
        self.lives: dict[str, str] = {}
        """The incarnation of each node that runs."""
        self._doors: dict[Guest, NodeProgram] = {}
        """The node that each guest has come to last."""
        self._server = server
        self._ready = set(NODES)
        """Nodes that take guests."""
        self._killed: set[str] = set()
        """Nodes that have been killed."""
        self._lost: set[str] = set()
        """Nodes whose templates have been killed."""
        self._deck: list[str] = []

    # The nodes

    def a_node(self) -> NodeProgram:
        return self.cluster[self.random.choice(sorted(self._ready))]

    async def ask(self, node: NodeProgram, call: str, *args: Any) -> Any:
        """Call a node that may be killed meanwhile; None if it is."""
        try:
            return await node.do(call, *args)
        except (OSError, AssertionError):
            if not node.ended:
                raise
            return None

    async def states(self) -> dict[str, Any]:
        """What each node knows that runs."""
        return {name: await self.cluster[name].state() for name in sorted(self._ready)}

    async def os_pid(self, pid: str) -> int | None:
        node = str(PID(pid).node)
        if node not in self._ready:
            return None
        os_pid: int | None = (await self.cluster[node].state())["workers"].get(pid)
        return os_pid

    async def open(self) -> None:
        """Begin to watch."""
        self.journal.touch()
        keeper = self.cluster[self.keeper]
        await keeper.do("get_or_spawn_async", WATCHER, "watch", None, str(self.journal))
        await self._until_all_know_the_watcher()
        self.lives = await self.incarnations()

    async def incarnations(self) -> dict[str, str]:
        return {name: one["status"]["incarnation"] for name, one in (await self.states()).items()}

    async def _until_all_know_the_watcher(self) -> None:
        for node in self.cluster:
            await node.until(lambda state: _knows(state, WATCHER), f"{node.name} has the names")

    # Its guests

    @contextlib.asynccontextmanager
    async def enter(self, guest: Guest) -> AsyncIterator[ClientConnection]:
        node = self._doors[guest] = self.cluster[guest.random.choice(sorted(self._ready))]
        number = guest.random.randrange(ROOMS)
        url = node.url(target="place", name=f"room {number}", args=[number])
        # Who leaves in the middle of a transfer to a dead node waits until that is known.
        async with client(url, open_timeout=TIMEOUT, close_timeout=TIMEOUT) as websocket:
            self.homes[len(self.stays)] = node
            yield websocket

    def refused(self, guest: Guest, error: Exception) -> None:
        if not self._doors[guest].ended:
            super().refused(guest, error)

    def open_rooms(self) -> list[str]:
        return self.members

    # Harm

    async def reign(self) -> None:
        """Do harm until the time is over, and each disaster has happened."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            disasters = tasks.create_task(self._bring_disasters(loop.time() + SECONDS))
            while not disasters.done():
                await self._meet()
                [what] = self.random.choices([*DEEDS], [*DEEDS.values()])
                match what:
                    case "room":
                        await self._end_room()
                    case "connection":
                        await self._end_connection()
                    case "helper":
                        await self._end_helper()
                    case "trouble":
                        await self._trouble()
                await asyncio.sleep(self.random.uniform(0.02, 0.15))  # the pace of the harm
        self.over = True

    async def _meet(self) -> None:
        """Learn which rooms there are, and let the watcher know them."""
        members = await self.ask(self.a_node(), "members", ALL_ROOMS)
        if members is not None:
            self.members = members
        joined = {room for stay in self.stays for room in stay.rooms}
        for pid in ({*self.members} | joined) - self.rooms:
            self.rooms.add(pid)
            await self.cluster[self.keeper].do("send", WATCHER, "watch", pid)

    async def _end_room(self) -> None:
        if not self.members:
            return
        pid = self.random.choice(self.members)
        if not self._deck:  # drawn like cards, so that none is left out
            self._deck = self.random.sample([*ENDS_BY], len(ENDS_BY))
        deed = self._deck.pop()
        node = self.a_node()
        self.deeds.setdefault(pid, []).append(deed)
        match deed:
            case "SIGKILL" | "SIGTERM":
                if (os_pid := await self.os_pid(pid)) is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(os_pid, getattr(signal, deed))
            case "cancel":
                await self.ask(node, "cancel", pid, "chaos")
            case "terminate":
                await self.ask(node, "terminate", pid)
            case "by another":
                other = self.random.choice(self.members)
                await self.ask(node, "send", other, "do", ["terminate", pid])
            case "abort 0" | "abort 3":
                await self.ask(node, "send", pid, "do", ["abort", int(deed[-1])])
            case _:
                await self.ask(node, "send", pid, "do", [deed])

    async def _end_connection(self) -> None:
        stays = [guest.stay for guest in self.guests if guest.stay and guest.stay.pid]
        if not stays:
            return
        stay = self.random.choice(stays)
        assert stay.pid is not None
        match self.random.choice(["cancel", "terminate", "abort"]):
            case "cancel":
                stay.done.add("cancelled")
                await self.ask(self.a_node(), "cancel", stay.pid, "moved on")
            case "terminate":
                stay.done.add("terminated")
                await self.ask(self.a_node(), "terminate", stay.pid)
            case "abort":
                stay.done.add("aborted")
                stay.websocket.transport.abort()

    async def _end_helper(self) -> None:
        if helpers := await self.ask(self.a_node(), "members", HELPERS):
            pid = self.random.choice(helpers)
            if self.random.random() < 0.5:
                await self.ask(self.a_node(), "terminate", pid)
            elif (os_pid := await self.os_pid(pid)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(os_pid, signal.SIGKILL)

    async def _trouble(self) -> None:
        if self.members:
            order = self.random.choice([["stall", 0.2], ["child"], ["exec", 0.1]])
            await self.ask(self.a_node(), "send", self.random.choice(self.members), "do", order)

    async def _bring_disasters(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        turn: list[str] = []
        while loop.time() < end or {*self.disasters} != {*DISASTERS}:
            await asyncio.sleep(self.random.uniform(0.3, 1.5))  # the pace of the disasters
            turn = turn or self.random.sample(DISASTERS, len(DISASTERS))
            what = turn.pop()
            self.disasters.append(what)
            match what:
                case "node":
                    await self._end_node()
                case "nats":
                    self._server.kill()
                    await asyncio.sleep(self.random.choice((0.0, 0.0, 1.0)))  # so long it is away
                    self._server.start()
                case "template":
                    await self._end_template()

    async def _end_node(self) -> None:
        """Kill a node, and start it again."""
        await until(self._visited_nodes, "a node has clients of others")
        name = self.random.choice(self._visited_nodes())
        node = self.cluster[name]
        self._ready.discard(name)
        self._killed.add(name)
        node.kill()
        await asyncio.sleep(self.random.uniform(0, 1))  # as whoever restarts it needs
        await self.cluster.start(name)
        await self._until_all_know_the_watcher()
        self._ready.add(name)
        self.lives[name] = (await self.incarnations())[name]

    def _visited_nodes(self) -> list[str]:
        """Nodes that may be killed and have rooms of which clients of others would notice it."""
        visited = {
            str(PID(guest.stay.room).node)
            for guest in self.guests
            if guest.stay and guest.stay.room and guest.stay.end is None
            if PID(guest.stay.room).node != self.homes[guest.stay.number].name
        }
        return sorted(visited & self._ready - {self.keeper})

    async def _end_template(self) -> None:
        name = self.random.choice(sorted(self._ready - {self.keeper}))
        self._lost.add(name)
        for os_pid in (await self.cluster[name].state())["templates"].values():
            if os_pid is not None:
                os.kill(os_pid, signal.SIGKILL)

    # Afterwards

    async def rest(self) -> None:
        """Wait until every guest knows how it stands, and nodes, rooms and guests agree."""
        await until(
            lambda: all(guest.settled for guest in self.guests),
            f"every client has shown that its connection works, or it is closed, {self.seed}",
        )
        await self._agreed("rooms have heard of the others' ends", self._unheard)
        await self._agreed("joins are leaves and open clients", self._misplaced)
        await self._agreed("nodes agree on names and groups", self._disputed)

    async def _agreed(self, what: str, differences: Any) -> None:
        found: Any = None
        deadline = asyncio.get_running_loop().time() + 30
        while found := await differences():
            assert asyncio.get_running_loop().time() < deadline, f"{what}: {self.seed}: {found}"
            await self._meet()
            await asyncio.sleep(0.1)

    async def living(self) -> set[str]:
        """All rooms that run."""
        workers = {pid for state in (await self.states()).values() for pid in state["workers"]}
        members = await self.cluster[self.keeper].do("members", ALL_ROOMS)
        return workers & {*members}

    async def _unheard(self) -> Any:
        """Ends that a room which lives should have seen and has not."""
        watched = {(me, peer) for me, peer in self.lines("watches")}
        heard = {(me, peer) for me, peer, *_ in self.lines("EXIT")}
        living = await self.living()
        return {(me, peer) for me, peer in watched - heard if me in living and peer not in living}

    async def _misplaced(self) -> Any:
        """Where what living rooms believe to be inside differs from where clients are."""
        living = await self.living()
        inside = Counter((room, pid) for room, pid in self.lines("join") if room in living)
        inside.subtract((room, pid) for room, pid in self.lines("leave") if room in living)
        there = Counter(
            (guest.stay.room, guest.stay.pid)
            for guest in self.guests
            if guest.stay is not None and guest.stay.end is None
        )
        return {who: (n, there[who]) for who, n in inside.items() if n != there[who]} or (
            there - inside
        )

    async def _disputed(self) -> Any:
        """Groups and names that nodes do not see in the same way, or that have members who died."""
        states = await self.states()
        living = {pid for state in states.values() for pid in state["workers"]}
        living |= {pid for state in states.values() for pid in state["connections"]}
        found: dict[str, Any] = {}
        for group in (ALL_ROOMS, HELPERS, GUESTS, *(f"{GUESTS} {n}" for n in range(ROOMS))):
            seen = {name: set(await self.cluster[name].do("members", group)) for name in states}
            if len({frozenset(members) for members in seen.values()}) > 1:
                found[group] = seen
            if dead := set.union(*seen.values()) - living:
                found[f"dead in {group}"] = dead
        for name in (WATCHER, *(f"room {n}" for n in range(ROOMS))):
            owners = {node: await self._lookup(node, name) for node in states}
            if len({*owners.values()}) > 1 or not {*owners.values()} <= living | {None}:
                found[name] = owners
        return found

    async def _lookup(self, node: str, name: str) -> str | None:
        try:
            pid: str = await self.cluster[node].do("lookup", name)
        except Failed:
            return None
        return pid

    async def close(self) -> None:
        """Let half of the clients go, and cancel the rooms around the others, until all is over."""
        self.closing.set()
        await until(
            lambda: (
                not any(
                    guest.stay and guest.stay.end is None and guest.stay.number % 2
                    for guest in self.guests
                )
            ),
            "half of them are gone",
        )
        for pid in await self.living():
            self.closed.add(pid)
            await self.a_node().do("cancel", pid, "over")

    async def end(self) -> None:
        """Wait until all have ended, and the watcher has heard of that, and end the watcher."""
        watcher = await self._lookup(self.keeper, WATCHER)
        for node in self.cluster:
            await node.until(
                lambda state: not {*state["workers"]} - {watcher} and not state["connections"],
                f"nothing runs on {node.name}",
            )
        await self._meet()
        await until(self._heard_of_all, "the watcher has heard of all ends")
        await self.cluster[self.keeper].do("cancel", watcher)
        for node in self.cluster:
            await node.until(lambda state: not state["kept"], f"nothing is kept on {node.name}")

    def _heard_of_all(self) -> bool:
        watched = {pid for (pid,) in self.lines("monitor")}
        return watched == {pid for pid, _ in self.lines("exit")} >= self.rooms

    # The books

    def problems(self) -> Iterator[str]:
        kinds = dict(self.lines("exit"))
        yield from self._wrong_closes(kinds)
        yield from self._wrong_ends(kinds)
        yield from self._wrong_exits()
        yield from self.wrong_echoes()
        yield from self.wrong_links()
        yield from self.wrong_stays()
        if wrong := {*self.refusals} - {503}:
            yield f"upgrades were refused with {wrong}"

    def _wrong_closes(self, kinds: dict[str, str | None]) -> Iterator[str]:
        results = {pid: _result(kind) for pid, kind in kinds.items() if kind != "noproc"}
        for stay in self.stays:
            if self._is_excused(stay, kinds):
                continue
            right = stay.expected(results)
            if stay.end not in right:
                rooms = [(room, self.deeds.get(room), kinds.get(room)) for room in stay.rooms]
                yield (
                    f"client {stay.number} {stay.pid} saw {stay.end}, right: {right}, joined: "
                    f"{stay.joined}, done: {stay.done}, asked: {stay.asked}, rooms: {rooms}"
                )

    def _is_excused(self, stay: Stay, kinds: dict[str, str | None]) -> bool:
        """Whether more than what is known decides how it was closed."""
        if stay.end == (1006, ""):
            return self.homes[stay.number].ended  # with its node
        if not stay.joined:
            return stay.end is not None and stay.end[0] in _UNDECIDED
        # The watcher was told of it when it had ended.
        return "noproc" in {kinds.get(room) for room in (stay.room, stay.asked) if room}

    def _wrong_ends(self, kinds: dict[str, str | None]) -> Iterator[str]:
        numbers = {me: number for me, _, _, number in self.lines("LINK_DOWN")}
        for room in self.rooms:
            node, kind = str(PID(room).node), kinds[room]
            right = {ENDS_BY[deed] for deed in self.deeds.get(room, ())} | {"noproc"}
            right |= {None} if room in self.closed else set()
            right |= {"node_down"} if node in self._killed else set()
            right |= {"template_lost"} if node in self._lost else set()
            if kind == "link_down" and not traps(numbers.get(room, 1)):
                continue
            if kind not in right:
                yield f"room {room} ended with {kind}; done to it: {self.deeds.get(room)}"

    def _wrong_exits(self) -> Iterator[str]:
        monitored = Counter(pid for (pid,) in self.lines("monitor"))
        exits = Counter(pid for pid, _ in self.lines("exit"))
        if monitored != exits:
            yield f"of the watcher's monitors, {monitored - exits} saw no exit"
            yield f"of the watcher's exits, {exits - monitored} had no monitor"
        # What a room had told the watcher when its node was killed may be lost.
        told = [
            stay
            for stay in self.stays
            if not {PID(room).node for room in stay.rooms} & self._killed
        ]
        if unseen := {stay.pid for stay in told if stay.pid} - {*exits}:
            yield f"the watcher saw no exit of {unseen}"
        watched = {(me, peer) for me, peer in self.lines("watches")}
        heard = Counter((me, peer) for me, peer, *_ in self.lines("EXIT"))
        if odd := {pair for pair, count in heard.items() if count > 1 or pair not in watched}:
            yield f"rooms saw ends of other rooms twice or without a monitor: {odd}"


def _knows(state: Any, name: str) -> bool:
    return name in state["keys"] or name in state["directory"]


def _result(kind: str | None) -> Result:
    if kind is None:
        return Result()
    return Result(error=ExitError(ExitKind(kind), "SIGKILL"))
