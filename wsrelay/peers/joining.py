"""Getting a lease: the start of each incarnation of a node in its cluster.

The key of a node may still have the incarnation before: that of a process that was killed, and
whose workers may run on for a moment. No node may run under that name until these are certain to be
frozen, so a new incarnation writes over a key that says `alive` only when it has not been renewed
for a whole lease, which it watches for as other nodes do. If it is renewed meanwhile, a node of
that name is alive. A key that says `dead` or `gone` is written over at once: whoever declares a
node dead has waited for its lease.

The same is done with the keys of others if they have another lease or protocol: they may be those
of a cluster that was stopped to change these.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from wsrelay.cluster.lease import (
    PREFIX,
    Floor,
    Lease,
    LeaseRecord,
    LeaseState,
    key_of_node,
    misfit,
)
from wsrelay.cluster.members import KeyWatch
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Conflict, Entry, Store, Unavailable
from wsrelay.errors import CannotJoin, WireError

from .asking import Asking

__all__ = ["Joining"]

logger = logging.getLogger(__name__)

_RENEWALS: Final = 2
"""How many renewals prove that a node is alive. One may be a write of the dead that is late."""

_REMEDY: Final = "all nodes need the same; to change it, stop them all first"


class _Obstacle:
    """A key that prevents the start for as long as it is renewed."""

    def __init__(self, gap: float) -> None:
        self.watch = KeyWatch(gap)
        self.revision = 0
        self.renewals = -1

    def seen(self, entry: Entry, issued: float, now: float) -> float:
        if entry.revision != self.revision:
            self.revision = entry.revision
            self.renewals += 1
        return self.watch.seen(entry.revision, issued, now)


class Joining:
    """The start of one incarnation, whose lease is `duration` seconds long.

    `floor` learns what all leases have.
    """

    def __init__(
        self,
        me: Peer,
        duration: float,
        store: Store,
        asking: Asking,
        clock: Callable[[], float],
        *,
        floor: Floor,
    ) -> None:
        self.me = me
        self.floor = floor
        self.has_written = False
        """Whether there may be a lease of this incarnation."""
        self._duration = duration
        self._store = store
        self._asking = asking
        self._clock = clock
        self._obstacles: dict[str, _Obstacle] = {}

    async def take_lease(self) -> tuple[Lease, list[str]]:
        """Write the lease; returns it and the names of all nodes that have a key.

        Waits for as long as the store does not answer. Raises `CannotJoin` if a node of that name
        is alive, or one with another lease or protocol, or if the store has lost writes. Cancelling
        it may leave a lease behind, to run out.
        """
        while True:
            issued = self._clock()
            try:
                entries = await self._asking.within(self._store.list(PREFIX))
                if self._may_start(entries, issued):
                    lease = await self._start(entries)
                    return lease, [entry.key.removeprefix(PREFIX) for entry in entries]
            except Conflict:
                pass  # another was first, or a write of our own was late: look again
            except Unavailable:
                for obstacle in self._obstacles.values():
                    obstacle.watch.anew()
            await asyncio.sleep(self._duration / 6)

    def _may_start(self, entries: list[Entry], issued: float) -> bool:
        """Whether nothing is in the way that may be alive."""
        now = self._clock()
        may_start = True
        for entry in entries:
            if not (why := self._objection(entry)):
                self._obstacles.pop(entry.key, None)
                continue
            if (obstacle := self._obstacles.get(entry.key)) is None:
                obstacle = self._obstacles[entry.key] = _Obstacle(self._duration / 3)
                logger.warning(
                    "waiting for a lease, %g s, to see whether a node is alive: %s",
                    max(self._duration, LeaseRecord.of(entry).lease),
                    why,
                )
            since = obstacle.seen(entry, issued, now)
            if obstacle.renewals >= _RENEWALS:
                raise CannotJoin(why)
            if issued < since + max(self._duration, LeaseRecord.of(entry).lease):
                may_start = False
        return may_start

    def _objection(self, entry: Entry) -> str:
        """Return what a key has against a start if it is that of the living."""
        node = entry.key.removeprefix(PREFIX)
        try:
            record = LeaseRecord.of(entry)
        except WireError as error:
            if node == self.me.node:
                raise CannotJoin(str(error)) from None
            return ""  # it says nothing of anyone: `members` waits for what it may be about
        self.floor.learn(record.floor)
        if record.state is not LeaseState.ALIVE or record.incarnation == self.me.incarnation:
            return ""
        if node == self.me.node:
            return (
                f"a node named {node!r} is in the cluster already (incarnation "
                f"{record.incarnation}): each node needs a name of its own"
            )
        if why := misfit(record, self._duration):
            return f"node {node!r} of the cluster has {why}: {_REMEDY}"
        if record.seen >= entry.revision:
            return (
                f"the cluster's store has lost writes: node {node!r} has seen its revision "
                f"{record.seen}, and it is at {entry.revision}; a start succeeds once the nodes "
                "that run have written again what was theirs"
            )
        return ""

    async def _start(self, entries: list[Entry]) -> Lease:
        """Write the lease, and `dead` over those of others that were watched in vain."""
        me, store, expected = self.me, self._store, 0
        for entry in entries:
            if entry.key == key_of_node(me.node):
                expected = entry.revision
            elif self._objection(entry):
                dead = LeaseRecord.of(entry).declared_dead(me.node, self.floor.value)
                await self._asking.within(store.put(entry.key, dead.encode(), entry.revision))
        issued, seen = self._clock(), store.sequence
        lease = Lease(me, self._duration, issued, 0, self.floor)
        record = lease.record(LeaseState.ALIVE, seen)
        self.has_written = True
        write = store.put(key_of_node(me.node), record.encode(), expected)
        revision = await self._asking.within(write)
        lease = Lease(me, self._duration, issued, revision, self.floor)
        if revision <= seen:
            # Others that have not noticed yet run what the store has forgotten.
            lease.writes_lost(self._clock(), seen)
            logger.warning(
                "the cluster's store has lost writes: node %s claims no names for %g s",
                me,
                self._duration,
            )
        return lease
