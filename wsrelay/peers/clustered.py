"""A node in its cluster: the membership, the links and the exchange of frames put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from wsrelay.cluster.frames import HostLoad
from wsrelay.cluster.lease import Hold
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.placing import roomiest
from wsrelay.node import Node
from wsrelay.node.info import LinkTraffic, MemberInfo

from .exchange import Exchange
from .link import PeerLink
from .links import PeerLinks
from .listener import NodeLoad
from .member import ClusterMember
from .members import members_of
from .names import ClusterNames
from .nats import NatsBus, NatsStore
from .options import Cluster
from .processes import Processes
from .sameness import Sameness

__all__ = ["ClusteredNode"]

logger = logging.getLogger(__name__)

_FLUSH: Final = 2.0
"""Seconds that the other nodes get to receive what was sent to them last."""

_LOOK: Final = 0.01


class ClusteredNode:
    """What a node does about its membership, from its start to its end (`MembershipListener`)."""

    def __init__(self, node: Node, cluster: Cluster) -> None:
        self.exchange = Exchange(node)
        self.elsewhere = Processes(self.exchange, self)
        self._node = node
        self._engine = node.engine
        self._cluster = cluster
        self._version = version("wsrelay")
        self._joining: asyncio.Task[None] | None = None
        self._awaited = False
        self._links: PeerLinks | None = None
        self._sameness = Sameness()
        self._ended = asyncio.Event()
        """Set whenever a process has ended."""
        self._engine.on_exit.append(self._on_exit)

    # The life of the node

    def start(self) -> None:
        """Begin to join."""
        self._bus = NatsBus(self._cluster)
        self._store = NatsStore(self._cluster)
        self._store.on_rewound.append(self._on_rewound)
        self.member = ClusterMember(
            self._node.name,
            self._cluster.name,
            self._store,
            self._bus,
            self,
            lease=float(self._cluster.lease),
        )
        self._names = ClusterNames(self.exchange, self.member, self._store)
        self.elsewhere.names = self._names
        self._bus.on_connected.append(self._names.store_was_away)
        self._joining = asyncio.get_running_loop().create_task(self._join())
        self._joining.add_done_callback(self._joined)

    async def joined(self) -> None:
        """Wait until the node is a member; raises `CannotJoin`."""
        if self._joining is not None:
            self._awaited = True
            await asyncio.shield(self._joining)

    @property
    def unready(self) -> str:
        """Why no client should be sent to this node now; empty if they may come."""
        if self._joining is None or not self._joining.done():
            return "it has not joined its cluster yet"
        match self.member.hold:
            case Hold.DEAD:
                return "it is no member of its cluster"
            case Hold.FROZEN:
                seconds = self.member.status().renewed
                return f"its processes with names are frozen: no lease for {seconds:.1f} s"
        return ""

    async def stop(self) -> None:
        """Leave: the others get what was sent to them, and then learn that this node is gone."""
        if not await self._stop_joining():
            return
        await self._names.aclose(_FLUSH)
        await self._flushed()
        await self.member.leave()
        for neighbour in list(self.exchange.neighbours.values()):
            self.exchange.down(neighbour.peer)

    async def aclose(self) -> None:
        """Close all connections; those whom `stop` has not told find out by the lease."""
        if not await self._stop_joining():
            return
        self._names.forget()
        self._names.kept.close()
        await self.member.aclose()
        links, self._links = self._links, None
        if links is not None:
            links.stop()
        try:
            await self._bus.aclose()
        finally:
            await self._store.aclose()

    async def _stop_joining(self) -> bool:
        """Join no longer, if that is not done; returns whether it was begun."""
        if self._joining is None:
            return False
        self._joining.cancel()
        await asyncio.wait([self._joining])
        return True

    async def _join(self) -> None:
        await self._bus.open()
        await self._store.open()
        await self.member.join()

    def _joined(self, joining: asyncio.Task[None]) -> None:
        if joining.cancelled() or (error := joining.exception()) is None:
            return
        if not self._awaited:
            logger.error("node %s is alone: it cannot join its cluster: %s", self._node.name, error)

    async def _flushed(self) -> None:
        """Wait a moment for the other nodes to receive what has been sent to them."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH):
                while self._links is not None and not self._links.idle:  # noqa: ASYNC110 - for once
                    await asyncio.sleep(_LOOK)

    # The membership

    def load(self) -> NodeLoad:
        """Return what to tell the others, and draw conclusions from what they have told."""
        self._place()
        self._sameness.look(self._engine.entries, self.member.loads())
        return self._load()

    def _load(self) -> NodeLoad:
        return NodeLoad(
            self._hosts(),
            [*self._engine.entries],
            self._engine.draining,
            self.member.hold is Hold.FROZEN,
            len(self._node.clients.connections),
            self._version,
        )

    def draining(self) -> None:
        """Have nothing placed here any more."""
        if self._joining is not None:
            self._place()
            self.member.tell_load()

    def members(self) -> list[MemberInfo]:
        """Return the nodes of the cluster as this one knows them, itself first."""
        if self._joining is None:  # it has not been started
            return []
        return members_of(self.member.status(), self._load(), self._link_to)

    def traffic(self) -> LinkTraffic:
        """Return what the links to other nodes have carried."""
        return LinkTraffic() if self._links is None else self._links.traffic

    def _link_to(self, peer: Peer) -> PeerLink | None:
        return None if self._links is None else self._links.get(peer)

    def _hosts(self) -> dict[str, HostLoad]:
        kernel, names = self._engine.kernel, self._engine.templates.names
        return {name: HostLoad(kernel.count(name), kernel.limit(name)) for name in names}

    def _place(self) -> None:
        """Choose anew where processes go that may run on any node."""
        others = {
            peer.node: _room(hello.hosts)
            for peer, hello in self.member.loads().items()
            if peer.node in self.exchange.neighbours and not hello.draining
        }
        own = {} if self._engine.draining else _room(self._hosts())
        self._engine.prefer(roomiest(own, others, self._engine.roomy))

    async def on_joining(self, me: Peer) -> None:
        """Hear what is sent to this incarnation."""
        if self._links is None:
            self._links = PeerLinks(self._bus, f"wsr.{self._cluster.name}", me)
            await self._links.start()
        else:
            self._links.rejoin(me.incarnation)

    def on_joined(self, me: Peer) -> None:
        """Take part again, if the incarnation before was declared dead."""
        del me
        self._names.joined()
        self._engine.reopen()

    def on_up(self, peer: Peer) -> None:
        """Open the link to another node."""
        assert self._links is not None  # noqa: S101 - the node has joined

        def broken(problem: str) -> None:
            logger.error(
                "the link with node %s has ended until one of the two is restarted, and each "
                "takes the other's processes for gone, since no node writes what came: %s",
                peer,
                problem,
            )
            self.exchange.down(peer)

        link = self._links.open(peer, lambda frame: self.exchange.receive(peer, frame), broken)
        self.exchange.up(peer, link)

    def on_down(self, peer: Peer, why: str) -> None:
        """Report all of its processes as gone, and drop what comes from it from now on."""
        del why
        if self._links is not None:
            self._links.close(peer)
        self.exchange.down(peer)
        self._names.node_is_down(peer)
        self._place()

    def on_deadline(self, deadline: float) -> None:
        """Tell the templates how long the processes with names of the cluster may run."""
        self._engine.fencing.set_deadline(int(deadline * 1e9))
        self._names.moved()

    def on_frozen(self) -> None:
        """Do nothing: the templates' guardians have frozen the processes, and the log says it."""

    def on_thawed(self) -> None:
        """Do nothing: the new deadline has thawed the processes, and the log says it."""

    def _on_rewound(self, seen: int, _: int) -> None:
        self.member.writes_lost(seen)

    def on_writes_lost(self) -> None:
        """Write again the keys of this node's names."""
        self._names.writes_lost()

    async def on_dead(self, why: str) -> None:
        """Kill all processes and close all clients; none start until it has joined again."""
        del why
        self._engine.close(rejoins=True)
        self._names.forget()
        for neighbour in list(self.exchange.neighbours.values()):
            self.exchange.down(neighbour.peer)
        self._node.terminate_all()
        while self._engine.processes:
            self._ended.clear()
            await self._ended.wait()

    def _on_exit(self, *_: object) -> None:
        self._ended.set()


def _room(hosts: Mapping[str, HostLoad]) -> dict[str, int]:
    """Return how many processes each host may start."""
    return {name: load.most - load.running for name, load in hosts.items()}
