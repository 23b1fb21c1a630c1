"""The search for the process of a name of the cluster, on whichever node it is or can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from wsrelay.cluster.frames import AskNameFrame
from wsrelay.cluster.peer import Peer
from wsrelay.errors import HostFailed, HostFull, WsrelayError
from wsrelay.node.process import NamedOrder
from wsrelay.values.pid import PID
from wsrelay.values.trace_context import put, split
from wsrelay.wire.code import pack_plain

from .exchange import PeerGone, not_an_entry
from .keys import Wait

if TYPE_CHECKING:
    from .names import ClusterNames

__all__ = ["NameSearch"]

_NODES: Final = 3
"""Nodes that are asked to start a process, this one included, until all count as full."""


class NameSearch:
    """The search for the process of a name, which ends with one."""

    def __init__(self, names: ClusterNames, order: NamedOrder, wait: Wait) -> None:
        self._names = names
        self._order = order
        self._wait = wait
        self._peer: Peer | None = None
        """The node that has the name, as far as is known."""
        self._stale: Peer | None = None
        """A node that has told the name and has it no more."""
        self._tried: set[Peer] = set()
        """Nodes that had no place."""
        self._full: WsrelayError | None = None
        """What the last of them has said, this one included."""

    async def process(self) -> PID:
        """Return the process that has the name, or the one that was started under it."""
        names, name = self._names, self._order.name
        while True:
            if names.is_here(name):
                try:
                    return names.launch(self._order)
                except HostFull as error:
                    if name in names.kept:  # no other node can have it
                        raise
                    self._full = error
            kind: Literal["find", "place"] = "find"
            peer = self._peer or self._told()
            if peer is None and self._is_refused():
                peer, kind = self._place(), "place"
            if peer is None:
                owned = await names.keys.claim(name, self._wait)
                self._peer = None if owned is None else owned.owner
            elif (pid := await self._asked(peer, kind)) is not None:
                return pid

    def _told(self) -> Peer | None:
        peer = self._names.directory.owner(self._order.name)
        return None if peer == self._stale else peer

    def _is_refused(self) -> bool:
        """Whether this node has no place, which once said holds for all of the search."""
        pid = self._order.pid
        self._full = self._full or self._names.refusal(pid.host, pid.node)
        return self._full is not None

    def _place(self) -> Peer:
        """Return the next node that may have a place; raises what the last one has said."""
        assert self._full is not None  # noqa: S101 - or it would be claimed here
        node, travels = self._order.pid.node, self._travels() and not self._order.stays
        if not travels and self._names.is_elsewhere(node):
            raise not_an_entry(self._order.order.target, str(node))
        if len(self._tried) + 1 < _NODES and travels:
            for peer in self._names.by_room(self._order.pid):
                if peer not in self._tried:
                    return peer
        raise self._full

    async def _asked(self, peer: Peer, kind: Literal["find", "place"]) -> PID | None:
        """Ask a node; None if the search has to go on."""
        self._peer = None
        if not await self._names.reach(peer, self._wait):
            self._lacks(peer, kind)
            return None
        try:
            answer = await self._names.ask(peer, self._wait, self._frame(kind))
        except PeerGone:
            answer = None
        except (HostFull, HostFailed) as error:
            if peer in self._tried:
                raise
            self._tried.add(peer)
            self._full = error
            return None
        if isinstance(answer, str):
            return PID(answer)
        if answer is None:
            self._lacks(peer, kind)
        else:
            owner = Peer(*answer)
            self._peer = None if self._names.is_me(owner) else owner
        return None

    def _lacks(self, peer: Peer, kind: Literal["find", "place"]) -> None:
        """Note that a node does not have the name, or no place."""
        if kind == "place":
            self._tried.add(peer)
        else:
            self._stale = peer

    def _frame(self, kind: Literal["find", "place"]) -> AskNameFrame:
        """Return what a node is asked, with what it is to start."""
        order, what = self._order, self._order.order
        frame = AskNameFrame(0, order.name, kind, str(order.parent or ""))
        if self._travels():
            frame.host, frame.target = order.pid.host, what.target
            trace, code = split(what.code)
            frame.code = put(code or pack_plain((), {}), trace)
            frame.end_when_empty = order.end_when_empty
        return frame

    def _travels(self) -> bool:
        """Whether another node can start it: that starts entries, with data."""
        what = self._order.order
        return self._names.is_entry(what.target) and (what.plain or not split(what.code)[1])
