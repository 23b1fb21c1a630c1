"""Real nodes in one event loop that share names, with a store in memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Sequence

import naming_handlers
import pair
import rooms
from doubles import Network, Server, StoreDouble
from support import processes, room, until

from wsrelay import Node
from wsrelay.cluster.frames import HelloFrame, HostLoad
from wsrelay.cluster.lease import Floor
from wsrelay.cluster.peer import Peer
from wsrelay.node.supervisor import Service, Supervisor
from wsrelay.peers.exchange import Exchange
from wsrelay.peers.names import ClusterNames
from wsrelay.peers.processes import Processes
from wsrelay.values.targets import TargetEntry

ENTRIES = {
    "room": TargetEntry(room(rooms.echo)),
    "small": TargetEntry(room(rooms.echo), "small"),
    "deaf": TargetEntry(room(rooms.deaf)),
    "keep": TargetEntry(f"{naming_handlers.__file__}:keep", "small"),
    "misuse": TargetEntry(f"{naming_handlers.__file__}:send_what_no_client_can_use"),
}
PATIENCE = 0.05
"""Seconds until a store that does not answer is given up."""


class Shared(pair.Cluster):
    """The nodes, the store that they share, and which of them have been declared dead."""

    def __init__(self) -> None:
        super().__init__({})
        self.server = Server(Network())
        self.network = self.server.network
        self.down: set[Peer] = set()
        self.supervisors: dict[str, Supervisor] = {}

    def seat(self, name: str) -> Seat:
        elsewhere = self.nodes[name].engine.elsewhere
        assert isinstance(elsewhere, Seat)
        return elsewhere

    @property
    def seats(self) -> list[Seat]:
        return [self.seat(name) for name in self.nodes]

    @property
    def keys(self) -> list[str]:
        """The keys of names in the store."""
        return [entry.key for entry in self.server.list("name.")]

    async def end_all(self) -> None:
        """End all that runs; nothing is left of it on any node or in the store."""
        for supervisor in self.supervisors.values():
            await supervisor.reconfigure([])
        for seat in self.seats:
            seat.allow(allowed=True)
            self[seat.me.node].terminate_all()
        for way in self.ways.values():
            way.go()
        await until(lambda: not any(node.workers for node in self.nodes.values()), "all are gone")
        for seat in self.seats:
            await until(functools.partial(_has_no_name, seat), "no key is held, and no copy left")
            assert not seat.own.keys._nonces
        await until(lambda: not self.keys, "no key is left")
        pair.nothing_is_left(self)
        for way in self.ways.values():
            way.seen.clear()

    def meet(self, node: Node) -> None:
        """Have a node join all others."""
        others = [*self.nodes]
        self.nodes[node.name] = node
        self._lives[node.name] = 0
        for other in others:
            self.connect(node.name, other)

    async def leave(self, name: str) -> None:
        """Have a node shut down and leave."""
        await self.nodes[name].aclose()
        await self.quiet()
        self._gone(name)
        del self.nodes[name]

    def declare_dead(self, name: str) -> None:
        """Decide that a node is dead, which the others are told; it knows nothing of it."""
        self.network.off.add(name)
        self._gone(name)

    def _gone(self, name: str) -> None:
        self.down.add(gone := self.peer(name))
        self.lose(name)
        for other in self.seats:
            if other.me != gone:
                other.own.node_is_down(gone)


def _has_no_name(seat: Seat) -> bool:
    return not (len(seat.own.keys) or len(seat.own.directory) or seat.kernel.names)


class Seat(Processes):
    """What one node asks, and its `Circle`."""

    def __init__(self, cluster: Shared, node: Node) -> None:
        super().__init__(Exchange(node))
        self.cluster = cluster
        self.me = Peer(node.name, "life0")
        self.floor = Floor()
        self.allowed = self.certain = True
        store = StoreDouble(cluster.server, node.name, PATIENCE)
        self.own = self.names = ClusterNames(self.exchange, self, store)

    async def stop(self) -> None:
        await self.own.aclose(1.0)

    # Circle

    def may_claim(self) -> bool:
        return self.allowed

    def is_certain(self) -> bool:
        return self.certain

    def allow(self, *, allowed: bool) -> None:
        self.allowed = allowed
        self.own.moved()

    def is_down(self, peer: tuple[str, str]) -> bool:
        return peer in self.cluster.down

    def loads(self) -> dict[Peer, HelloFrame]:
        loads = {}
        for other in self.cluster.seats:
            kernel = other.kernel
            hosts = {
                host: HostLoad(kernel.count(host), kernel.limit(host))
                for host in ("processes", "small")
            }
            loads[other.me] = HelloFrame(*other.me, hosts=hosts, draining=other.engine.draining)
        return loads


class _Attaching:
    node_name = "alone"

    def __init__(self, cluster: Shared) -> None:
        self.cluster = cluster

    def attach(self, node: Node) -> Seat:
        return Seat(self.cluster, node)


@contextlib.asynccontextmanager
async def circle(*names: str, services: Sequence[Service] = ()) -> AsyncIterator[Shared]:
    """Nodes of these names, whose host `small` has one place."""
    cluster = Shared()
    async with contextlib.AsyncExitStack() as stack:
        for name in names:
            await stack.enter_async_context(joining(cluster, name, services))
        yield cluster


@contextlib.asynccontextmanager
async def joining(
    cluster: Shared, name: str, services: Sequence[Service] = ()
) -> AsyncIterator[Node]:
    """One more node."""
    hosts = [processes(), processes(name="small", max_processes=1)]
    node = Node(name=name, hosts=hosts, entries=ENTRIES, cluster=_Attaching(cluster))
    cluster.supervisors[name] = Supervisor(node, services)
    async with node:
        cluster.meet(node)
        yield node
