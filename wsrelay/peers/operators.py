"""What operators ask about the nodes of a cluster, and of one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from wsrelay.cluster.frames import (
    PeerControlFrame,
    PeerFindFrame,
)
from wsrelay.errors import WsrelayError
from wsrelay.node import Node
from wsrelay.node.info import MemberInfo
from wsrelay.node.snapshot import locate
from wsrelay.values.pid import LONGEST, PID
from wsrelay.values.sizes import show

from .exchange import Exchange, PeerGone
from .neighbour import Neighbour

__all__ = ["PeerOperators"]

_MOST_LINES: Final = 20
"""The most nodes that an error names."""

_MOST_BYTES: Final = 8 * 1024 * 1024
"""Bytes that a control socket may be asked with, or answer, across nodes."""


class PeerOperators:
    """Asks other nodes what an operator asks this one, and answers what they ask for theirs.

    `members` is that of `Elsewhere`; without it, only the nodes with a link are known.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.members: Callable[[], list[MemberInfo] | None] = lambda: None
        self._exchange = exchange
        self._node: Node = exchange.node
        exchange.answer(PeerFindFrame, self._find)
        exchange.answer(PeerControlFrame, self._control)

    async def locate(self, node: str, to: str) -> PID | None:
        """Do what `Elsewhere.locate` does."""
        found = await self._ask(node, PeerFindFrame(0, to))
        return None if found is None else PID(found)

    async def ask_control(
        self, node: str, method: str, path: str, body: bytes
    ) -> tuple[int, bytes]:
        """Do what `Elsewhere.ask_control` does."""
        if len(path) > LONGEST or len(body) > _MOST_BYTES:
            raise ValueError(
                f"a request of {len(path)} characters and {show(len(body))} is more than can be "
                f"passed on to node {node}: {LONGEST} and {show(_MOST_BYTES)}"
            )
        status, answer = await self._ask(node, PeerControlFrame(0, method, path, body))
        return status, answer

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

    async def _control(self, neighbour: Neighbour, frame: PeerControlFrame) -> tuple[int, bytes]:
        if (control := self._node.control) is None:
            raise WsrelayError(f"node {self._node.name} has no control socket")
        status, body = await control.answer(
            frame.method, frame.path, bytes(frame.body), f"node {neighbour.node}"
        )
        if len(body) > _MOST_BYTES:
            raise ValueError(
                f"node {self._node.name} answers with {show(len(body))}, more than can be passed "
                f"on to node {neighbour.node}: {show(_MOST_BYTES)}; ask there"
            )
        return status, body
