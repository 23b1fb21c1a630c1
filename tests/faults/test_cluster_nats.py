"""The NATS of three nodes is killed, restarted and stands still, under traffic between them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import cluster_halls
import pytest
from clusters import LEASE, NodeCluster, NodeProgram, nodes_over
from nats_servers import NatsServer
from support import until
from visitors import Books, Visitor, Visitors, visiting

from wsrelay import PID

pytestmark = pytest.mark.anyio

STANDSTILL = 5.0
"""Seconds; longer than a lease."""


@contextlib.asynccontextmanager
async def cluster_over(
    server: NatsServer, folder: Path, lease: float = LEASE
) -> AsyncIterator[NodeCluster]:
    """Three nodes that can run halls and talkers."""
    folder.mkdir()
    entries = cluster_halls.ENTRIES
    async with nodes_over(
        server.url, folder, "a", "b", "c", lease=lease, entries=entries
    ) as running:
        yield running


class Traffic:
    """On each node a hall, a visitor of each of them, and a talker who talks to each of them.

    All talk from the beginning on.
    """

    def __init__(self, cluster: NodeCluster, visitors: Visitors, journal: Path) -> None:
        self.cluster = cluster
        self.books = Books(journal)
        self.visitors = visitors
        self.halls: list[str] = []
        self.talkers: list[str] = []
        self.last: dict[str, int] = {}
        """The last number of each talker."""
        self._journal = journal
        self._over = asyncio.Event()
        self._states: list[Any] = []

    async def begin(self, talking: asyncio.TaskGroup) -> None:
        nodes = [*self.cluster]
        for node in nodes:
            pid = await node.do(
                "get_or_spawn_async", f"hall/{node.name}", "hall", None, str(self._journal)
            )
            self.halls.append(pid)
        self._states = await self._members()
        for node in nodes:
            for hall in nodes:
                await self.visitors.come(node, target="hall", name=f"hall/{hall.name}")
            talker = await node.do("spawn", "talker", None, *(f"hall/{one.name}" for one in nodes))
            self.talkers.append(talker)
        for visitor in self.visitors.all:
            talking.create_task(visitor.talk(self._over))

    async def goes_on(self) -> None:
        """Wait until what everybody says from now on is heard everywhere."""
        numbers = {visitor.pid: visitor.number + 1 for visitor in self.visitors.all}
        heard = self.books.heard()
        talked = {key: said[-1] for key, said in heard.items() if key[1] in self.talkers}
        await until(lambda: self._have_heard(numbers), "the visitors hear each other")
        await until(
            lambda: all(said[-1] > talked.get(key, 0) for key, said in self.books.heard().items()),
            "the halls hear the talkers",
        )

    async def goes_on_at_home(self) -> None:
        """Wait until visitors of halls of their own nodes have heard what they say from now on."""
        home = [one for one in self.visitors.all if _node(one.pid) == _node(one.halls[0])]
        assert len(home) == len(self.halls)
        numbers = {one.pid: one.number + 1 for one in home}
        await until(
            lambda: all(one.heard[one.pid][-1] >= numbers[one.pid] for one in home),
            "visitors are heard on their own nodes",
        )

    async def end(self) -> None:
        """Let all be silent, and wait until everything has arrived."""
        self._over.set()
        for talker in self.talkers:
            self.last[talker] = await self.cluster[_node(talker)].do(
                "call_async", talker, "the last?", timeout=60
            )
        numbers = {visitor.pid: visitor.number for visitor in self.visitors.all}
        await until(lambda: self._have_heard(numbers), "the visitors have heard all")
        await until(lambda: self.books.heard().keys() >= self.said().keys(), "all were heard")
        await until(
            lambda: all(self.books.heard()[key][-1] >= last for key, last in self.said().items()),
            "the halls have heard all",
        )

    def said(self) -> dict[tuple[str, str], int]:
        """The last number of each who talks, for each hall where it does."""
        said = {(one.halls[0], one.pid): one.number for one in self.visitors.all}
        said |= {(hall, talker): n for talker, n in self.last.items() for hall in self.halls}
        return said

    def _have_heard(self, numbers: dict[str, int]) -> bool:
        return all(
            one.heard.get(other.pid, [0])[-1] >= numbers[other.pid] for one, other in self.pairs()
        )

    def pairs(self) -> Iterator[tuple[Visitor, Visitor]]:
        """Each visitor, with each that is in its hall, itself among them."""
        for one in self.visitors.all:
            for other in self.visitors.all:
                if one.halls == other.halls:
                    yield one, other

    async def check(self) -> None:
        """Everything has arrived in order, once, and neither nodes nor clients have gone."""
        for key, heard in self.books.heard().items():
            assert heard == [*range(1, self.said()[key] + 1)], key
        for one, other in self.pairs():
            assert one.heard[other.pid] == [*range(1, other.number + 1)]
        assert [one.end for one in self.visitors.all] == [None] * len(self.visitors.all)
        assert [len(one.halls) for one in self.visitors.all] == [1] * len(self.visitors.all)
        assert await self._members() == self._states

    async def _members(self) -> list[Any]:
        """Which incarnations know which, at each node."""
        status = [(await node.state())["status"] for node in self.cluster]
        members = [
            sorted(
                (other["node"], other["incarnation"], other["state"]) for other in one["members"]
            )
            for one in status
        ]
        return [*zip([one["incarnation"] for one in status], members, strict=True)]


def _node(pid: str) -> str:
    return str(PID(pid).node)


@contextlib.asynccontextmanager
async def traffic(cluster: NodeCluster, journal: Path) -> AsyncIterator[Traffic]:
    """Traffic that is over, with everything that was said heard, when the block ends."""
    async with visiting() as visitors:
        there = Traffic(cluster, visitors, journal)
        async with asyncio.TaskGroup() as talking:
            await there.begin(talking)
            await there.goes_on()
            yield there
            await there.end()
        await there.check()


async def test_nobody_notices_that_nats_was_killed_but_for_the_delay(
    own_nats: NatsServer, tmp_path: Path
) -> None:
    async with (
        cluster_over(own_nats, tmp_path / "nodes") as cluster,
        traffic(cluster, tmp_path / "journal") as there,
    ):
        for seconds in (0.0, 0.0, 1.9):
            own_nats.kill()
            await asyncio.sleep(seconds)  # so long it is away
            own_nats.start()
            await there.goes_on()


class Writers:
    """Names whose processes write into a file each, and who asks for them on all nodes.

    Whoever got another process of a name would have started one, which would write as well.
    """

    def __init__(self, cluster: NodeCluster, folder: Path) -> None:
        self._cluster = cluster
        self._files = {f"writer/{node.name}": folder / f"of {node.name}" for node in cluster}
        self._over = asyncio.Event()

    async def begin(self, asking: asyncio.TaskGroup) -> None:
        for node in self._cluster:
            await self._ask(node, f"writer/{node.name}")
        for node in self._cluster:
            asking.create_task(self._keep_asking(node))

    async def _keep_asking(self, node: NodeProgram) -> None:
        while not self._over.is_set():
            for name in self._files:
                await self._ask(node, name)

    async def _ask(self, node: NodeProgram, name: str) -> None:
        await node.do("get_or_spawn_async", name, "writer", None, str(self._files[name]))

    async def end(self, since: float) -> None:
        """Wait until all have written after that time."""
        for name in self._files:
            await until(lambda: self._lines(name)[-1][-1] > since, f"{name} writes again")  # noqa: B023
        self._over.set()

    def _lines(self, name: str) -> list[tuple[int, str, float]]:
        """Return the fence, the process and the time of each line."""
        whole, _, _ = self._files[name].read_text().rpartition("\n")
        lines = [line.split() for line in whole.splitlines()]
        return [(int(fence), pid, int(time) / 1e9) for fence, pid, _, time in lines]

    def check(self, began: float, ended: float) -> None:
        """Each name has had one process all the time, which has not written between these times."""
        for name in self._files:
            lines = self._lines(name)
            assert len({(fence, pid) for fence, pid, _ in lines}) == 1
            assert not [when for *_, when in lines if began < when < ended]


async def test_nats_that_stands_still_freezes_the_nodes_with_shorter_leases_and_no_other(
    own_nats: NatsServer, tmp_path: Path
) -> None:
    async with (
        cluster_over(own_nats, tmp_path / "short") as short,
        cluster_over(own_nats, tmp_path / "long", lease=60.0) as long,
        traffic(short, tmp_path / "short halls") as hurried,
        traffic(long, tmp_path / "long halls") as patient,
        asyncio.TaskGroup() as asking,
    ):
        writers = Writers(short, tmp_path)
        await writers.begin(asking)
        paused = time.monotonic()
        own_nats.pause()
        for node in short:
            await node.until(lambda state: state["frozen"], f"{node.name} is frozen")
        await patient.goes_on_at_home()
        while (now := time.monotonic()) < paused + STANDSTILL:
            for node in long:
                assert not (await node.state())["frozen"]
            await asyncio.sleep(0.2)
        own_nats.resume()
        for node in short:
            await node.until(lambda state: not state["frozen"], f"{node.name} goes on")
        await hurried.goes_on()
        await patient.goes_on()
        await writers.end(since=now)
        writers.check(paused + LEASE, now)
