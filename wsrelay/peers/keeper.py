"""The lease of this node, kept: renewed, its deadlines noticed, withdrawn at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from wsrelay.cluster.lease import Hold, Lease, LeaseState, LeaseStep, key_of_node
from wsrelay.cluster.ports import Conflict, Store, Unavailable

from .asking import Asking, wait
from .listener import MembershipListener, tell

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)


class Keeper:
    """Drives the lease of one incarnation; `hindered` is called when it could not be renewed."""

    def __init__(
        self,
        lease: Lease,
        store: Store,
        asking: Asking,
        clock: Callable[[], float],
        listener: MembershipListener,
    ) -> None:
        self.lease = lease
        self.store = store
        self.asking = asking
        self.clock = clock
        self.hindered: Callable[[], None] = lambda: None
        self._listener = listener
        self._key = key_of_node(lease.me.node)
        self._hold = Hold.HOLDING
        self._changed = asyncio.Event()

    @property
    def hold(self) -> Hold:
        """What the node may do now."""
        return self.lease.hold(self.clock())

    async def keep(self) -> None:
        """Renew the lease; returns when it is lost."""
        lease, store = self.lease, self.store
        while lease.step is not LeaseStep.END:
            if (delay := lease.due - self.clock()) > 0:
                await asyncio.sleep(delay)
                continue
            is_renewal = lease.step is LeaseStep.RENEW
            try:
                if is_renewal:
                    value = lease.issued(self.clock(), store.sequence).encode()
                    write = store.put(self._key, value, lease.revision)
                    is_lost = lease.renewed(self.clock(), await self.asking.within(write))
                    self.renewed()
                else:
                    entry = await self.asking.within(store.get(self._key))
                    is_lost = lease.read(self.clock(), entry, store.sequence)
            except (Conflict, Unavailable):
                self.hindered()
                (lease.refused if is_renewal else lease.unread)(self.clock())
            else:
                if is_lost:
                    self._lost()

    def renewed(self) -> None:
        """Tell the deadline that there is now."""
        tell(self._listener.on_deadline, self.lease.runs_until)
        self._look()
        self._changed.set()

    def writes_lost(self, seen: int) -> None:
        """Claim nothing for a lease: others have noticed that the store has lost writes."""
        if self.lease.writes_lost(self.clock(), max(seen, self.store.sequence)):
            self._lost()

    async def watch(self) -> None:
        """Notice the deadlines of the lease as they pass, for ever."""
        while True:
            self._look()
            self._changed.clear()
            now = self.clock()
            await wait(self._changed, self.lease.changes_at(now) - now)

    async def withdraw(self) -> bool:
        """Write that the incarnation has left; returns whether it is certain that others know."""
        gone = self.lease.record(LeaseState.GONE).encode()
        try:
            async with asyncio.timeout(self.lease.duration / 2):
                while self.lease.step is not LeaseStep.END:
                    with contextlib.suppress(Conflict, Unavailable):
                        write = self.store.put(self._key, gone, self.lease.revision)
                        await self.asking.within(write)
                        return True
                    with contextlib.suppress(Unavailable):
                        entry = await self.asking.within(self.store.get(self._key))
                        self.lease.read(self.clock(), entry)
                        continue
                    await asyncio.sleep(self.lease.duration / 60)
        except TimeoutError:
            return False
        return True

    def _lost(self) -> None:
        self._changed.set()
        logger.error(
            "the cluster's store has lost writes; has it restarted without having written them to "
            "its disk (sync_interval, replicas)? No names are claimed for %g s",
            self.lease.duration,
        )
        tell(self._listener.on_writes_lost)

    def _look(self) -> None:
        """Tell what has become of the lease."""
        lease, now, before = self.lease, self.clock(), self._hold
        self._hold = hold = lease.hold(now)
        if hold in {before, Hold.DEAD}:
            return
        without = now - lease.since
        if hold is Hold.FROZEN:
            logger.error(
                "the lease of node %s was not renewed for %.1f s: its processes with names in the "
                "cluster are frozen, since others may take these names from %g s on",
                lease.me,
                without,
                lease.duration,
            )
            tell(self._listener.on_frozen)
            return
        if hold is Hold.HOLDING:
            logger.warning("the lease of node %s is renewed again", lease.me)
        else:
            logger.warning(
                "the lease of node %s was not renewed for %.1f s: it takes no new names, and its "
                "processes with names in the cluster are frozen at %.1f s",
                lease.me,
                without,
                lease.runs_until - lease.since,
            )
        if before is Hold.FROZEN:
            tell(self._listener.on_thawed)
