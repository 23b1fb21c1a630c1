"""What a node does about its membership of a cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from msgspec import Struct

from wsrelay.cluster.frames import HostLoad
from wsrelay.cluster.peer import Peer

__all__ = ["MembershipListener", "NodeLoad", "tell"]

logger = logging.getLogger(__name__)


class NodeLoad(Struct, frozen=True):
    """What a node tells the others of itself."""

    hosts: dict[str, HostLoad] = {}
    entries: list[str] = []
    draining: bool = False
    frozen: bool = False
    clients: int = 0
    version: str = ""


class MembershipListener(Protocol):
    """What the node does about its membership. What it raises is logged, and changes nothing."""

    def load(self) -> NodeLoad:
        """Return what to tell the others; called each second."""

    async def on_joining(self, me: Peer) -> None:
        """Get ready to hear from others as a new incarnation; called before they can know of it."""

    def on_joined(self, me: Peer) -> None:
        """Note that the node is a member; the others follow as `on_up`."""

    def on_up(self, peer: Peer) -> None:
        """Take up relations with another member; once for each incarnation."""

    def on_down(self, peer: Peer, why: str) -> None:
        """End all relations with an incarnation for good; once, perhaps without an `on_up`."""

    def on_deadline(self, deadline: float) -> None:
        """Tell templates how long processes may run, in seconds of the monotonic clock."""

    def on_frozen(self) -> None:
        """Note that the deadline has passed: the templates have stopped the fenced processes."""

    def on_thawed(self) -> None:
        """Note that there is a new deadline after `on_frozen`."""

    def on_writes_lost(self) -> None:
        """Write again the keys of the names that this node has: the store may have lost them."""

    async def on_dead(self, why: str) -> None:
        """End all processes and close all clients: others have been told that they are gone.

        The node joins again only when this has returned.
        """


def tell(callback: Callable[..., None], *about: object) -> None:
    """Call back; what it raises is logged."""
    try:
        callback(*about)
    except Exception:
        logger.exception("%s has failed", getattr(callback, "__qualname__", callback))
