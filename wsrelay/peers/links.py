"""The links of one node to all others: one subscription, from which each gets what is for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from wsrelay.cluster.link import PUBLISH, WINDOW
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Bus
from wsrelay.node.info import LinkTraffic
from wsrelay.values.sizes import ITEM

from .link import PeerLink, Receive

__all__ = ["PeerLinks"]

_INCOMING: Final = 32 * 1024 * 1024
"""Bytes that may be under way to one node: a NATS server disconnects who has 64 MB unread. Nodes of
one cluster see about the same others, and so agree about the shares."""


class PeerLinks:
    """The links between an incarnation of this node and those of the others.

    A link begins with `open` and ends with `close`. What comes from elsewhere is dropped, and
    nothing is kept of it: from a node that is not known yet, or is dead, or for an earlier
    incarnation of this one. What a node has published before its link is opened here is published
    again when it is.

    `prefix` is the first part of all subjects of the cluster, `wsr.<cluster>`.
    """

    def __init__(
        self,
        bus: Bus,
        prefix: str,
        me: Peer,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._bus = bus
        self._prefix = f"{prefix}.l"
        self._me = me
        self._clock = clock
        self._links: dict[str, PeerLink] = {}
        """By the subject of what comes."""
        self._ended = LinkTraffic()
        """What the links that are closed have carried."""
        self.dropped = 0
        """Publishes that belonged to no link."""

    async def start(self) -> None:
        """Subscribe, and follow the state of the bus."""
        self._bus.on_connected.append(self._connected)
        self._bus.on_disconnected.append(self._disconnected)
        # For every incarnation of this node: there is one subscription for all of its life.
        await self._bus.subscribe(f"{self._prefix}.{self._me.node}.>", self._received)

    def open(self, peer: Peer, receive: Receive, broken: Callable[[str], None]) -> PeerLink:
        """Open the link to an incarnation of another node; it must not be open already.

        `receive` is called with each of its frames. `broken` is called with a description if it
        sends what no node of ours does, or says that this one did; then the link has ended, and has
        yet to be closed when the node is down. See `PeerLink`.
        """
        incoming = self._subject(self._me, peer)
        if incoming in self._links:
            raise ValueError(f"the link to {peer.node} ({peer.incarnation}) is open already")
        outgoing = self._subject(peer, self._me)
        link = PeerLink(self._bus, outgoing, receive, broken, clock=self._clock)
        self._links[incoming] = link
        self._share()
        return link

    def close(self, peer: Peer) -> None:
        """Close that link; from now on all that comes from that incarnation is dropped."""
        link = self._links.pop(self._subject(self._me, peer), None)
        if link is not None:
            self._end(link)
            self._share()

    def get(self, peer: Peer) -> PeerLink | None:
        """Return the link to an incarnation of another node, if it is open."""
        return self._links.get(self._subject(self._me, peer))

    def rejoin(self, incarnation: str) -> None:
        """Close all links and be another incarnation: this one is dead."""
        links, self._links = self._links, {}
        self._me = Peer(self._me.node, incarnation)
        for link in links.values():
            self._end(link)

    def _end(self, link: PeerLink) -> None:
        """Close a link, and keep what it has carried."""
        link.close()
        self._ended = _sum([self._ended, link.traffic])

    @property
    def traffic(self) -> LinkTraffic:
        """What all links have carried, those that have ended included."""
        return _sum([self._ended, *(link.traffic for link in self._links.values())])

    def stop(self) -> None:
        """Close all links, and take no notice of the bus any more."""
        self._bus.on_connected.remove(self._connected)
        self._bus.on_disconnected.remove(self._disconnected)
        self.rejoin(self._me.incarnation)

    @property
    def idle(self) -> bool:
        """Whether the other nodes have received all that was sent to them."""
        return all(link.idle for link in self._links.values())

    def _subject(self, to: Peer, sender: Peer) -> str:
        return ".".join((self._prefix, *to, *sender))

    def _share(self) -> None:
        """Divide what may be under way by the number of nodes."""
        share = _INCOMING // max(len(self._links), 1)
        for link in self._links.values():
            link.limit(max(PUBLISH + ITEM, min(share, WINDOW)))

    def _received(self, subject: str, data: bytes) -> None:
        link = self._links.get(subject)
        if link is None:
            self.dropped += 1
        else:
            link.received(data)

    def _connected(self) -> None:
        for link in self._links.values():
            link.connected()

    def _disconnected(self) -> None:
        for link in self._links.values():
            link.disconnected()


def _sum(traffic: Sequence[LinkTraffic]) -> LinkTraffic:
    return LinkTraffic(
        sum(one.sent for one in traffic),
        sum(one.resent for one in traffic),
        sum(one.received for one in traffic),
    )
