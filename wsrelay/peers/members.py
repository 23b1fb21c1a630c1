"""The nodes of a cluster as operators see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from wsrelay.cluster.frames import PROTOCOL, HostLoad
from wsrelay.cluster.lease import Hold
from wsrelay.cluster.members import MemberStatus
from wsrelay.cluster.peer import Peer
from wsrelay.node.info import LinkInfo, MemberInfo

from .link import PeerLink
from .listener import NodeLoad
from .member import ClusterMemberStatus

__all__ = ["members_of"]


def members_of(
    status: ClusterMemberStatus, load: NodeLoad, link: Callable[[Peer], PeerLink | None]
) -> list[MemberInfo]:
    """Return the nodes that one knows, itself first; `link` returns the link to another one."""
    own = MemberInfo(
        name=status.node,
        incarnation=status.incarnation,
        state=_own_state(status, load),
        asked=True,
        version=load.version,
        protocol=PROTOCOL,
        hosts=_hosts(load.hosts),
        clients=load.clients,
        unrenewed=None if status.renewed == math.inf else round(status.renewed, 3),
    )
    return [own, *(_member(one, link(Peer(one.node, one.incarnation))) for one in status.members)]


def _own_state(status: ClusterMemberStatus, load: NodeLoad) -> str:
    if not status.incarnation:
        return "gone" if status.state == "left" else "joining"
    if status.state in {Hold.FROZEN.value, Hold.DEAD.value}:
        return status.state
    return "draining" if load.draining else "up"


def _member(one: MemberStatus, link: PeerLink | None) -> MemberInfo:
    state, hello, seen = one.state, one.hello, one.unchanged
    if state == "up" and hello is not None:
        state = "frozen" if hello.frozen else "draining" if hello.draining else "up"
    return MemberInfo(
        name=one.node,
        incarnation=one.incarnation,
        state=state,
        version=None if hello is None else hello.version,
        protocol=None if hello is None else hello.protocol,
        hosts=None if hello is None else _hosts(hello.hosts),
        clients=None if hello is None else hello.clients,
        unrenewed=None if seen is None or not one.incarnation else round(seen, 3),
        link=None if link is None else _link(link),
    )


def _link(link: PeerLink) -> LinkInfo:
    counts = link.statistics()
    return LinkInfo(
        connected=link.is_connected,
        backlog=counts.backlog,
        unacknowledged=counts.unacknowledged,
        delay=round(link.delay, 3),
        sent=counts.sent,
        resent=counts.resent,
        received=counts.received,
    )


def _hosts(hosts: Mapping[str, HostLoad]) -> dict[str, tuple[int, int]]:
    return {name: (load.running, load.most) for name, load in hosts.items()}
