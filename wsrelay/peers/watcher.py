"""The other nodes, watched: their leases read when that is due, and the consequences drawn."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from wsrelay.cluster.lease import Hold, key_of_node
from wsrelay.cluster.members import (
    DeclareDead,
    ForgetKey,
    MemberEffect,
    Members,
    Misfit,
    NodeDown,
    NodeUp,
    WritesLost,
)
from wsrelay.cluster.ports import Conflict, Entry, Unavailable

from .asking import wait
from .keeper import Keeper
from .listener import MembershipListener, tell

__all__ = ["Watcher"]

logger = logging.getLogger(__name__)


class Watcher:
    """Drives `members` for one incarnation of this node, as long as its own lease is kept."""

    def __init__(self, members: Members, keeper: Keeper, listener: MembershipListener) -> None:
        self.members = members
        self._keeper = keeper
        self._store = keeper.store
        self._asking = keeper.asking
        self._clock = keeper.clock
        self._listener = listener
        self._noticed = asyncio.Event()
        keeper.hindered = members.hindered

    def notice(self) -> None:
        """Look again when the next key is due: it may be earlier than it was."""
        self._noticed.set()

    async def watch(self) -> None:
        """Read the leases of the others when that is due, for ever."""
        members = self.members
        while True:
            now = self._clock()
            if members.due > now:
                self._noticed.clear()
                await wait(self._noticed, members.due - now)
                continue
            names = members.reads(now)
            readings = await asyncio.gather(*(self._read(name) for name in names))
            if None in readings or self._keeper.hold is not Hold.HOLDING:
                members.hindered()
            for name, reading in zip(names, readings, strict=True):
                if reading is not None:
                    entry, issued, answered = reading
                    await self._carry_out(members.read(name, entry, issued=issued, now=answered))

    async def _read(self, name: str) -> tuple[Entry | None, float, float] | None:
        issued = self._clock()
        try:
            entry = await self._asking.within(self._store.get(key_of_node(name)))
        except Unavailable:
            return None
        return entry, issued, self._clock()

    async def _carry_out(self, effects: list[MemberEffect]) -> None:
        for effect in effects:
            match effect:
                case NodeUp(peer):
                    logger.info("node %s is up", peer)
                    tell(self._listener.on_up, peer)
                case NodeDown(peer, why):
                    logger.warning("node %s is gone: %s", peer, why)
                    tell(self._listener.on_down, peer, why)
                case DeclareDead():
                    if await self._declare(effect):
                        await self._carry_out(self.members.declared(self._clock(), effect.peer))
                case ForgetKey(node, expected):
                    with contextlib.suppress(Conflict, Unavailable):
                        await self._asking.within(self._store.delete(key_of_node(node), expected))
                case Misfit(peer, why):
                    logger.error("node %s cannot be beside this one: it has %s", peer, why)
                case WritesLost(seen):
                    self._keeper.writes_lost(seen)

    async def _declare(self, effect: DeclareDead) -> bool:
        """Write that an incarnation is dead; returns whether that is decided."""
        if self._keeper.hold is not Hold.HOLDING:
            return False
        key, value = key_of_node(effect.peer.node), effect.value.encode()
        try:
            await self._asking.within(self._store.put(key, value, effect.expected))
        except Conflict:
            return False  # it lives, or another was first: the next reading tells
        except Unavailable:
            self.members.hindered()
            return False
        return True
