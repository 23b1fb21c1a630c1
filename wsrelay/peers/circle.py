"""What the names of a node need of its membership in the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from wsrelay.cluster.frames import HelloFrame
from wsrelay.cluster.lease import Floor
from wsrelay.cluster.peer import Peer

__all__ = ["Bell", "Circle"]


class Circle(Protocol):
    """Who is in the cluster, as far as names are concerned; `Membership` is that."""

    @property
    def floor(self) -> Floor:
        """That of the claims from now on; it is kept in the store for those who join."""

    @property
    def me(self) -> Peer | None:
        """This node, in its present incarnation; None while it is no member."""

    def may_claim(self) -> bool:
        """Whether this node's lease allows new names."""

    def is_certain(self) -> bool:
        """Whether this incarnation is certain not to have been declared dead."""

    def is_down(self, peer: tuple[str, str]) -> bool:
        """Whether that incarnation is dead or has left, which is final; if not, it is looked after.

        Its end is told when it comes, even if nobody has heard of it so far.
        """

    def loads(self) -> Mapping[Peer, HelloFrame]:
        """Return what the other members have said last of their hosts."""


class Bell:
    """Wakes all that wait when something has changed that they look at."""

    def __init__(self) -> None:
        self._rung: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wake all that wait."""
        if (rung := self._rung) is not None:
            self._rung = None
            rung.set_result(None)

    async def heard(self) -> None:
        """Wait until it rings."""
        if self._rung is None:
            self._rung = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._rung])
