"""Three nodes on virtual time that are cut off, delayed, killed and started again, by a seed."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any

import pytest
from doubles import virtually
from test_member import LEASE, Machine, World, a_world

from wsrelay.cluster.lease import LeaseRecord, LeaseState
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Entry
from wsrelay.peers.joining import Joining

NAMES = ("a", "b", "c")


class Judge:
    """Sees what the store decides, and how long each incarnation was allowed to run."""

    def __init__(self, world: World) -> None:
        self.deadlines: dict[Peer, float] = defaultdict(float)
        self.ends: dict[Peer, float] = {}
        self._write = world.server.write
        self._get = world.server.get
        world.server.write = self._judged  # type: ignore[method-assign]

    def follow(self, machine: Machine) -> None:
        """Note the deadlines that the templates of a node are told."""
        told = machine.told

        def on_deadline(deadline: float) -> None:
            self.deadlines[machine.me] = max(self.deadlines[machine.me], deadline)

        told.on_deadline = on_deadline  # type: ignore[method-assign]

    def _judged(self, key: str, value: bytes | None, expected: int) -> int:
        before = self._get(key)
        revision = self._write(key, value, expected)
        assert value is not None
        record = LeaseRecord.of(Entry(key, value, revision))
        if before is not None:
            former = LeaseRecord.of(before)
            is_over = record.incarnation != former.incarnation or record.state is LeaseState.DEAD
            if former.state is LeaseState.ALIVE and is_over:
                peer = Peer(key.removeprefix("lease."), former.incarnation)
                self.ends[peer] = asyncio.get_running_loop().time()
        return revision

    @property
    def overlaps(self) -> list[tuple[Peer, float]]:
        """Who could run when another could have taken its place, and for how long."""
        return [
            (peer, self.deadlines[peer] - end)
            for peer, end in self.ends.items()
            if self.deadlines[peer] > end
        ]


def told_in_order(machine: Machine) -> bool:
    """Whether each incarnation was up once at most, and down once and last, in each life."""
    told: dict[Any, list[str]] = defaultdict(list)
    for _, kind, about in machine.told.told:
        if kind == "joined":
            told.clear()
        elif kind in {"up", "down"}:
            of_it = told[about if kind == "up" else about[0]]
            of_it.append(kind)
            if of_it not in (["up"], ["down"], ["up", "down"]):
                return False
    return True


async def harsh_life(seed: int) -> tuple[Judge, bool]:
    """Live through a seed; returns the judge, and whether all know each other at its end."""
    dice = random.Random(seed)  # noqa: S311 - a simulation
    async with a_world() as world:
        network, judge = world.network, Judge(world)
        network.delay = lambda _node: dice.choice([0.0, 0.001, 0.01, 0.2])
        network.lose_answer = lambda _node, _key: dice.random() < 0.03
        alive: dict[str, Machine] = {}
        starting: dict[str, asyncio.Task[None]] = {}

        def start(name: str) -> None:
            machine = alive[name] = world.machine(name)
            judge.follow(machine)
            starting[name] = asyncio.ensure_future(machine.member.join())

        for name in NAMES:
            start(name)
        for _ in range(25):
            await asyncio.sleep(dice.uniform(0.1, 4))
            name = dice.choice(NAMES)
            match dice.randrange(6):
                case 0:
                    network.cut(name, told=dice.random() < 0.5)
                case 1:
                    network.cut(told=dice.random() < 0.5)
                case 2 if starting[name].done():
                    await alive[name].kill()
                    await alive[name].store.aclose()
                    await asyncio.sleep(dice.uniform(0, 3))
                    start(name)
                case _:
                    network.heal(name)
                    network.heal()
        for name in NAMES:
            network.heal(name)
        network.heal()
        network.lose_answer = lambda _node, _key: False
        await asyncio.gather(*starting.values())
        await asyncio.sleep(3 * LEASE)
        everyone = {machine.me for machine in alive.values()}
        agree = all({machine.me, *machine.member.up} == everyone for machine in alive.values())
        assert all(told_in_order(machine) for machine in world.machines)
    return judge, agree


def test_whatever_happens_nobody_may_run_when_it_is_replaced_and_all_agree_in_the_end() -> None:
    ends = 0
    for seed in range(25):
        judge, agree = virtually(harsh_life(seed))
        assert (seed, judge.overlaps, agree) == (seed, [], True)
        ends += len(judge.ends)
    assert ends > 50


def overlapping(seed: int) -> bool:
    return bool(virtually(harsh_life(seed))[0].overlaps)


def test_a_start_that_waits_for_nobody_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Joining, "_may_start", lambda *_arguments: True)
    assert any(overlapping(seed) for seed in range(25))
