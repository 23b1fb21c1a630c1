"""Names that a node keeps also while no process has them: those of services of the cluster."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from wsrelay.cluster.frames import AskNameFrame
from wsrelay.cluster.peer import Peer
from wsrelay.errors import HostFailed
from wsrelay.node.engine import Engine

from .exchange import PeerGone
from .keys import Wait

if TYPE_CHECKING:
    from .names import ClusterNames

__all__ = ["KeptNames"]


class KeptNames:
    """The names that one node keeps, and its waits for others to let theirs go."""

    def __init__(self, names: ClusterNames, engine: Engine) -> None:
        self._names = names
        self._engine = engine
        self._kept: set[str] = set()
        self._waits: set[asyncio.Future[None]] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    async def keep(self, name: str) -> None:
        """Do what `Elsewhere.keep` does."""
        keeping = asyncio.ensure_future(self._keep(name))
        self._waits.add(keeping)
        try:
            await asyncio.wait([keeping])
        finally:
            self._waits.discard(keeping)
            keeping.cancel()
        if keeping.cancelled():
            raise HostFailed(self._engine.why_closed)
        keeping.result()

    async def _keep(self, name: str) -> None:
        names, keys, wait = self._names, self._names.keys, Wait()
        stale: Peer | None = None
        names.local.discard(name)
        while not self._engine.draining:
            if keys.has(name):
                self._kept.add(name)
                return
            peer = names.directory.owner(name)
            if peer is None or peer == stale:
                owned = await keys.claim(name, wait)
                peer = None if owned is None or names.is_me(owned.owner) else owned.owner
            stale = peer
            if peer is not None and await names.reach(peer, wait):
                with contextlib.suppress(PeerGone):
                    await names.ask(peer, wait, AskNameFrame(0, name, "free"))
        names.look(name)
        raise HostFailed(self._engine.why_closed)

    def let_go(self, name: str) -> None:
        """Do what `Elsewhere.let_go` does."""
        self._kept.discard(name)
        # It may be called because its process has ended.
        asyncio.get_running_loop().call_soon(self._names.look, name)

    async def until_free(self, name: str) -> None:
        """Wait until this node does not decide the name."""
        keys = self._names.keys
        while True:
            if (claiming := keys.claiming.get(name)) is not None:
                await asyncio.wait([claiming])
            elif (held := keys.held.get(name) or keys.releasing.get(name)) is not None:
                self._names.look(name)
                await held.freed.wait()
            else:
                await keys.clear(name)
                return

    def lose(self, name: str) -> None:
        """Keep a name no longer that another node has."""
        self._kept.discard(name)

    def forget(self) -> None:
        """Keep nothing: this incarnation is dead."""
        self._kept.clear()

    def close(self) -> None:
        """End what waits, without a bound, for other nodes."""
        for wait in list(self._waits):
            wait.cancel()
