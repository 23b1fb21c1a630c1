"""Crowds on three nodes: all come at once, and move from room to room while they talk."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import cluster_halls
import pytest
from clusters import NodeCluster, NodeProgram, nodes_over
from nats_servers import NatsServer
from support import until
from visitors import Books, Visitor, visiting

pytestmark = pytest.mark.anyio

CROWD = 200
ROOMS = 50

MOVERS = 9
HALLS = 6
MOVES = 10
"""How often each mover moves on."""


@pytest.fixture(scope="module")
async def cluster(
    nats: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[NodeCluster]:
    folder, entries = tmp_path_factory.mktemp("nodes"), cluster_halls.ENTRIES
    async with nodes_over(nats.url, folder, "a", "b", "c", entries=entries) as running:
        yield running


@pytest.fixture
async def nodes(cluster: NodeCluster) -> AsyncIterator[list[NodeProgram]]:
    """The three nodes, on which nothing runs after a test."""
    yield [*cluster]
    await cluster.clear()


def names(count: int) -> list[str]:
    return [f"hall/{number}" for number in range(count)]


async def test_a_crowd_that_asks_all_nodes_for_the_same_rooms_at_once_gets_one_of_each(
    nodes: list[NodeProgram], tmp_path: Path
) -> None:
    journal = str(tmp_path / "journal")
    books = Books(Path(journal))
    wanted = [names(ROOMS)[number % ROOMS] for number in range(CROWD)]
    random.Random(1).shuffle(wanted)  # noqa: S311 - a game
    async with visiting() as visitors:
        crowd = await asyncio.gather(
            *(
                visitors.come(nodes[number % 3], target="hall", name=name, args=[journal])
                for number, name in enumerate(wanted)
            )
        )
        workers = [pid for node in nodes for pid in (await node.state())["workers"]]
        assert len(workers) == ROOMS
        rooms: dict[str, list[Visitor]] = {}
        for visitor, name in zip(crowd, wanted, strict=True):
            rooms.setdefault(name, []).append(visitor)
        for node in nodes:
            await node.until(
                lambda state: {*state["keys"], *state["directory"]} >= rooms.keys(),
                f"{node.name} has been told of all rooms",
            )
            for name, inside in rooms.items():
                pid = await node.do("lookup", name)
                assert [one.halls for one in inside] == [[pid]] * len(inside), name
        assert {one.halls[0] for one in crowd} == set(workers)
        await asyncio.gather(*(one.say() for one in crowd))
        for inside in rooms.values():
            everyone = {one.pid: [1] for one in inside}
            for one in inside:
                await until(lambda: len(one.heard) == len(everyone), "all are heard")  # noqa: B023
                assert one.heard == everyone
    assert not books.lines("refused")


async def test_visitors_who_move_between_nodes_while_they_talk_are_heard_once_and_in_order(
    nodes: list[NodeProgram], tmp_path: Path
) -> None:
    journal = str(tmp_path / "journal")
    books = Books(Path(journal))
    async with visiting() as visitors:
        for number, name in enumerate(names(HALLS)):
            await nodes[number % 3].do("get_or_spawn_async", name, "hall", None, journal)
        movers = [
            await visitors.come(
                nodes[number % 3], target="hall", name=names(HALLS)[number * 2 // 3]
            )
            for number in range(MOVERS)
        ]
        halls = {await nodes[0].do("lookup", name): name for name in names(HALLS)}

        await asyncio.gather(*(_wander(one, number, halls) for number, one in enumerate(movers)))
        said = {one.pid: one.number for one in movers}
        await until(lambda: len(books.lines("heard")) >= sum(said.values()), "all has been heard")
        await until(
            lambda: len(books.lines("join")) == len(books.lines("leave")) + MOVERS,
            "each is in one hall",
        )
        visits: dict[str, list[list[int]]] = {}
        for _, who, numbers in books.visits():
            visits.setdefault(who, []).append(numbers)
        for who, last in said.items():
            in_turn = sorted(filter(None, visits[who]))
            assert [one for numbers in in_turn for one in numbers] == [*range(1, last + 1)], who
        assert books.inside() == _places(movers)
        assert all(one.end is None for one in movers)
        moves = sum(len(one.halls) for one in movers) - MOVERS
        assert moves == MOVERS * MOVES
    assert not books.lines("refused")


async def _wander(mover: Visitor, number: int, halls: dict[str, str]) -> None:
    """Talk without a pause, and move on to halls at random."""
    chance = random.Random(number)  # noqa: S311 - a game
    for _ in range(MOVES):
        here = len(mover.halls)
        others = [name for pid, name in halls.items() if pid != mover.halls[-1]]
        await mover.say("move", chance.choice(others))
        while len(mover.halls) == here:
            await mover.say()
            await asyncio.sleep(0.001)  # the pace of the talk
        for _ in range(chance.randrange(5)):
            await mover.say()


def _places(movers: list[Visitor]) -> dict[str, Counter[str]]:
    places: dict[str, Counter[str]] = {}
    for one in movers:
        places.setdefault(one.halls[-1], Counter())[one.pid] += 1
    return places
