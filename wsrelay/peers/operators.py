"""What operators ask about the nodes of a cluster, and of one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from wsrelay.cluster.frames import PeerFindFrame, PeerListFrame, PeerRetireFrame
from wsrelay.errors import WsrelayError
from wsrelay.node import Node
from wsrelay.node.info import MemberInfo, ProcessInfo
from wsrelay.node.snapshot import locate, processes_after
from wsrelay.values.pid import PID

from .exchange import Exchange, PeerGone
from .neighbour import Neighbour

__all__ = ["PeerOperators"]

_decode = msgspec.msgpack.Decoder(ProcessInfo).decode

_MOST_LINES: Final = 20
"""The most nodes that an error names."""


class PeerOperators:
    """Asks other nodes what an operator asks this one, and answers what they ask for theirs.

    `members` is that of `Elsewhere`; without it, only the nodes with a link are known.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.members: Callable[[], list[MemberInfo] | None] = lambda: None
        self._exchange = exchange
        self._node: Node = exchange.node
        exchange.answer(PeerFindFrame, self._find)
        exchange.answer(PeerListFrame, self._list)
        exchange.answer(PeerRetireFrame, self._retire)

    async def locate(self, node: str, to: str) -> PID | None:
        """Do what `Elsewhere.locate` does."""
        found = await self._ask(node, PeerFindFrame(0, to))
        return None if found is None else PID(found)

    async def processes_after(self, node: str, after: str) -> list[ProcessInfo]:
        """Do what `Elsewhere.processes_after` does."""
        return [_decode(one) for one in await self._ask(node, PeerListFrame(0, after))]

    async def retire(self, node: str) -> None:
        """Do what `Elsewhere.retire` does."""
        await self._ask(node, PeerRetireFrame(0))

    async def _ask(self, node: str, frame: Any) -> Any:
        if (neighbour := self._exchange.neighbours.get(node)) is None:
            raise self.missing(node)
        try:
            return await self._exchange.ask(neighbour, frame)
        except PeerGone:
            raise self.missing(node) from None

    def missing(self, node: str) -> WsrelayError:
        """Return the error that says that a node is not there, and which are."""
        for member in self.members() or ():
            if member.name == node:
                return WsrelayError(f"node {node} cannot be asked: it is {member.state}")
        there = [self._node.name, *sorted(self._exchange.neighbours)]
        more = ", ..." if len(there) > _MOST_LINES else ""
        return WsrelayError(
            f"there is no node {node!r:.80} in the cluster: its nodes are "
            f"{', '.join(there[:_MOST_LINES])}{more}"
        )

    # What other nodes ask

    def _find(self, _: Neighbour, frame: PeerFindFrame) -> str | None:
        return locate(self._node, frame.to)

    def _list(self, _: Neighbour, frame: PeerListFrame) -> list[bytes]:
        return processes_after(self._node, frame.after)

    def _retire(self, neighbour: Neighbour, _: PeerRetireFrame) -> None:
        self._node.retire(f"node {neighbour.node}")
