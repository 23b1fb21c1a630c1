"""Two nodes, one store and a harsh world in virtual time: who runs when the other is dead?

Node `a` keeps its lease, node `b` keeps its own and watches `a`. What happens between them is drawn
from a seed: delays, answers that are lost after the write, writes that are late, stalls of a node,
a node or the store cut off. `run` says what came of it.
"""

from __future__ import annotations

import functools
import heapq
import random
from collections.abc import Callable, Generator
from typing import Any

from doubles import Network, Server
from msgspec import Struct

from wsrelay.cluster.lease import (
    Hold,
    Lease,
    LeaseRecord,
    LeaseState,
    LeaseStep,
    key_of_node,
)
from wsrelay.cluster.members import DeclareDead, Members, NodeDown, NodeUp
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Conflict, Unavailable

LEASE = 6.0
PATIENCE = LEASE / 6
END = 60.0

A, B = Peer("a", "one"), Peer("b", "two")

Ask = tuple[bool, Callable[[], Any]]
"""Something to do in the store, and whether it writes."""

Part = Generator[float | Ask, Any, None]
"""Yields the time until which it sleeps, or something to do in the store, which is answered."""


class Schedule(Struct):
    """What the world does to the nodes: windows of time, and what a crossing takes."""

    stalls: dict[str, list[tuple[float, float]]]
    cuts: list[tuple[float, float]]
    """While `a` does not reach the store."""
    away: list[tuple[float, float]]
    """While nobody does."""
    unwritable: list[tuple[float, float]] = []
    """While it answers, but writes nothing, as without a quorum."""
    delays: tuple[float, ...] = (0.001, 0.002, 0.05, 0.3)
    lost: float = 0.0
    """How often an answer is lost."""


class Outcome(Struct):
    """What came of a schedule."""

    told: list[NodeUp | NodeDown]
    dead: float | None = None
    """When `dead` was written."""
    ran_until: float = 0.0
    """The last deadline that the templates of `a` were told."""
    noticed: bool = False
    """Whether `a` has learnt that it is dead."""

    @property
    def overlap(self) -> float:
        """Seconds for which `a` ran while it was dead."""
        return 0.0 if self.dead is None else max(0.0, self.ran_until - self.dead)


def _within(windows: list[tuple[float, float]], now: float) -> float | None:
    for start, length in windows:
        if start <= now < start + length:
            return start + length
    return None


class World:
    """The store, the time, and what is under way."""

    def __init__(self, schedule: Schedule, dice: random.Random) -> None:
        self.now = 0.0
        self.server = Server(Network())
        self._schedule = schedule
        self._dice = dice
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, when: float, do: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, do))

    def start(self, node: str, part: Part) -> None:
        self._resume(node, part, lambda: next(part))

    def run(self) -> None:
        while self._events and self.now < END:
            self.now, _, do = heapq.heappop(self._events)
            do()

    def _resume(self, node: str, part: Part, step: Callable[[], Any]) -> None:
        """Let it go on as soon as its node does not stall."""
        if (over := _within(self._schedule.stalls.get(node, []), self.now)) is not None:
            self.at(over, lambda: self._resume(node, part, step))
            return
        try:
            wish = step()
        except StopIteration:
            return
        if isinstance(wish, tuple):
            self._ask(node, part, wish)
        else:
            self.at(max(self.now, wish), lambda: self._resume(node, part, lambda: part.send(None)))

    def _ask(self, node: str, part: Part, ask: Ask) -> None:
        is_write, operation = ask
        is_over = False

        def once(step: Callable[[], Any]) -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._resume(node, part, step)

        def carry_out() -> None:
            try:
                result = operation()
            except Conflict as error:
                conflict = error
                answer: Callable[[], Any] = lambda: part.throw(conflict)  # noqa: E731
            else:
                answer = lambda: part.send(result)  # noqa: E731
            if self._dice.random() >= self._schedule.lost:
                self.at(self._crossed(node), lambda: once(answer))

        late = Unavailable("late")
        arrival = self._crossed(node)
        if not is_write or _within(self._schedule.unwritable, arrival) is None:
            self.at(arrival, carry_out)
        self.at(self.now + PATIENCE, lambda: once(lambda: part.throw(late)))

    def _crossed(self, node: str) -> float:
        when = self.now + self._dice.choice(self._schedule.delays)
        windows = self._schedule.away + (self._schedule.cuts if node == "a" else [])
        while (over := _within(windows, when)) is not None:
            when = over + 0.2
        return when


def run(
    seed: int,
    schedule: Schedule,
    lease_of: type[Lease] = Lease,
    members_of: type[Members] = Members,
) -> Outcome:
    """Run a schedule to its end."""
    world = World(schedule, random.Random(seed))  # noqa: S311 - a simulation
    outcome = Outcome([])
    leases: dict[str, Lease] = {}
    write = world.server.write
    members = members_of(B, LEASE)
    members.found(0.0, "a")
    for me in (A, B):
        record = LeaseRecord(me.incarnation, LeaseState.ALIVE, LEASE)
        revision = write(key_of_node(me.node), record.encode(), 0)
        leases[me.node] = lease_of(me, LEASE, 0.0, revision)

    def keep(node: str) -> Part:
        lease, key = leases[node], key_of_node(node)
        while lease.step is not LeaseStep.END:
            if lease.due > world.now:
                yield lease.due
                continue
            try:
                if lease.step is LeaseStep.RENEW:
                    value = lease.issued(world.now, 0).encode()
                    revision = yield True, functools.partial(write, key, value, lease.revision)
                    lease.renewed(world.now, revision)
                    if node == "a":
                        outcome.ran_until = max(outcome.ran_until, lease.runs_until)
                else:
                    entry = yield False, functools.partial(world.server.get, key)
                    lease.read(world.now, entry)
            except (Conflict, Unavailable):
                if node == "b":
                    members.hindered()
                if lease.step is LeaseStep.RENEW:
                    lease.refused(world.now)
                else:
                    lease.unread(world.now)
        outcome.noticed |= node == "a"

    def watch() -> Part:
        while True:
            if members.due > world.now:
                yield members.due
                continue
            for name in members.reads(world.now):
                issued = world.now
                try:
                    entry = yield False, functools.partial(world.server.get, key_of_node(name))
                except Unavailable:
                    members.hindered()
                    continue
                if leases["b"].hold(world.now) is not Hold.HOLDING:
                    members.hindered()
                for effect in members.read(name, entry, issued=issued, now=world.now):
                    if isinstance(effect, DeclareDead):
                        yield from declare(effect)
                    elif isinstance(effect, NodeUp | NodeDown):
                        outcome.told.append(effect)

    def declare(effect: DeclareDead) -> Part:
        key, value = key_of_node(effect.peer.node), effect.value.encode()

        def decide() -> None:
            write(key, value, effect.expected)
            outcome.dead = world.now

        try:
            yield True, decide
        except Conflict:
            return
        except Unavailable:
            members.hindered()
            return
        outcome.told += [
            effect
            for effect in members.declared(world.now, effect.peer)
            if isinstance(effect, NodeUp | NodeDown)
        ]

    outcome.ran_until = leases["a"].runs_until
    for node in leases:
        world.start(node, keep(node))
    world.start("b", watch())
    world.run()
    return outcome


def a_harsh_schedule(seed: int) -> Schedule:
    """Draw stalls, cuts and outages, short and long."""
    dice = random.Random(seed)  # noqa: S311 - a simulation

    def windows(count: int, lengths: list[float]) -> list[tuple[float, float]]:
        return sorted((dice.uniform(0, END), dice.choice(lengths)) for _ in range(count))

    return Schedule(
        stalls={
            "a": windows(5, [0.2, 0.7, 1.2, 2.4, 2.9, 4, 7]),
            "b": windows(4, [0.2, 0.7, 1.2, 2.9, 7]),
        },
        cuts=windows(4, [0.3, 1, 2, 3, 6, 9]),
        away=windows(2, [0.3, 1.9, 5, 8]),
        lost=dice.choice([0.0, 0.05, 0.3]),
    )


def a_fair_schedule(seed: int) -> Schedule:
    """Draw short stalls of a node that is connected; what else there is hits everyone alike."""
    dice = random.Random(seed)  # noqa: S311 - a simulation
    stalls = [(start + dice.uniform(0, 1), dice.uniform(0.1, 2.0)) for start in range(0, 60, 4)]
    asleep = (30.0, dice.choice([5.0, 8.0]))  # the machine of both
    return Schedule(
        stalls={
            "a": [*stalls, asleep],
            "b": [(dice.uniform(0, 25), dice.choice([1.0, 3.0, 8.0])), asleep],
        },
        cuts=[],
        away=[(dice.uniform(5, 10), dice.choice([1.9, 5, 9]))],
        unwritable=[(40.0, dice.choice([3, 12]))],
        lost=dice.choice([0.0, 0.05]),
    )
