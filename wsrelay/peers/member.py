"""A node's membership of its cluster: its own lease kept, the other nodes watched, hello said.

The parts drive the machines `cluster.lease` and `cluster.members` over a `Store` and a `Bus`:
`joining` takes a lease, `keeper` keeps it, `watcher` watches the others, `greeter` says hello. The
store's connection should be its own: what waits behind bulk data is late, and late renewals freeze.

A life is: `join` (waits for the store, then writes a lease), a member until the lease is lost or
`leave` is called. When another node has declared this one dead, the listener's `on_dead` ends
everything that runs, and the node joins again as a new incarnation: nothing of before counts then,
and all members are told anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from wsrelay.cluster.frames import HelloFrame
from wsrelay.cluster.lease import Floor, Hold, Lease, LeaseStep
from wsrelay.cluster.members import Members, MemberStatus
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Bus, Store
from wsrelay.errors import CannotJoin

from .asking import Asking
from .greeter import Greeter
from .joining import Joining
from .keeper import Keeper
from .listener import MembershipListener, tell
from .watcher import Watcher

__all__ = ["ClusterMember", "ClusterMemberStatus"]

logger = logging.getLogger(__name__)

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


class ClusterMemberStatus(Struct, frozen=True):
    """How it stands with the membership of a node, for operators."""

    node: str
    incarnation: str
    """Empty while it is not a member."""
    state: str
    """`joining`, `left`, or what `Hold` says."""
    renewed: float
    """Seconds since the last renewal that succeeded was issued; infinity without one."""
    may_claim: bool
    members: list[MemberStatus]


class ClusterMember:
    """One node as a member of the cluster of that name, with a lease of so many seconds.

    `clock` is monotonic and the same for all processes of a machine.
    """

    def __init__(
        self,
        node: str,
        cluster: str,
        store: Store,
        bus: Bus,
        listener: MembershipListener,
        *,
        lease: float = 6.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.node = node
        self.duration = lease
        self.floor = Floor()
        self._store = store
        self._listener = listener
        self._clock = clock
        self._asking = Asking(lease / 6, clock)
        self._greeter = Greeter(bus, cluster, clock, listener)
        self._joining: Joining | None = None
        self._keeper: Keeper | None = None
        self._watcher: Watcher | None = None
        self._life: asyncio.Task[None] | None = None
        self._left = False

    # What the node asks

    @property
    def me(self) -> Peer | None:
        """This incarnation; None while the node is not a member."""
        return None if self._keeper is None else self._keeper.lease.me

    @property
    def hold(self) -> Hold:
        """What the node may do now; DEAD while it is not a member."""
        return Hold.DEAD if self._keeper is None else self._keeper.hold

    @property
    def freeze_deadline(self) -> float:
        """When processes with names of the cluster are to be frozen; long ago without a lease."""
        return -math.inf if self._keeper is None else self._keeper.lease.runs_until

    def may_claim(self) -> bool:
        """Whether new names may be claimed now."""
        return self._keeper is not None and self._keeper.lease.may_claim(self._clock())

    def is_certain(self) -> bool:
        """Whether no other node can have declared this incarnation dead."""
        return self._keeper is not None and self._keeper.lease.hold(self._clock()) is Hold.HOLDING

    @property
    def up(self) -> list[Peer]:
        """The other members."""
        return [] if self._watcher is None else self._watcher.members.up

    def is_up(self, peer: tuple[str, str]) -> bool:
        """Whether the incarnation is another member."""
        return self._watcher is not None and self._watcher.members.is_up(peer)

    def is_down(self, peer: tuple[str, str]) -> bool:
        """Whether the incarnation is certain to run no more.

        If that is not known, it is found out, however long it takes, and told by `on_down`.
        """
        if self._watcher is None:
            return False
        members = self._watcher.members
        if members.is_down(peer):
            return True
        members.named(self._clock(), peer)
        self._watcher.notice()
        return False

    def loads(self) -> dict[Peer, HelloFrame]:
        """Return what the other members have said last, without those that are silent."""
        return {} if self._watcher is None else self._watcher.members.loads(self._clock())

    def status(self) -> ClusterMemberStatus:
        """Return the state of the node, and of all that it knows."""
        now, keeper, watcher = self._clock(), self._keeper, self._watcher
        state = "left" if self._left else "joining"
        return ClusterMemberStatus(
            self.node,
            "" if keeper is None else keeper.lease.me.incarnation,
            state if keeper is None else keeper.hold.value,
            math.inf if keeper is None else now - keeper.lease.since,
            self.may_claim(),
            [] if watcher is None else watcher.members.status(now),
        )

    def tell_load(self) -> None:
        """Tell the others now what they would be told within a second."""
        self._greeter.hurry()

    def writes_lost(self, seen: int) -> None:
        """Claim nothing for a lease: the store has lost writes up to the revision `seen`."""
        if self._keeper is not None:
            self._keeper.writes_lost(seen)

    # Its life

    async def join(self) -> None:
        """Become a member, however long the store does not answer.

        Raises `CannotJoin`. Whether it succeeds, raises or is cancelled, call `leave` in the end.
        """
        await self._greeter.open()
        await self._join()
        self._life = asyncio.get_running_loop().create_task(self._live())

    async def leave(self) -> None:
        """Leave the cluster: call it when nothing of this node runs any more.

        The others know at once if the store answers; if not, they wait for the lease, and so does
        the next start of this node. It takes no longer than half a lease.
        """
        self._left = True
        self._greeter.on_hello = lambda _hello: None
        await self._stop_living()
        keeper, self._keeper, self._watcher = self._keeper, None, None
        if keeper is None and self._joining is not None and self._joining.has_written:
            # Nobody knows whether the lease was written: its revision is found out.
            lease = Lease(self._joining.me, self.duration, self._clock(), 0, self.floor)
            keeper = self._keeper_of(lease)
        if keeper is not None and keeper.lease.step is not LeaseStep.END:
            if await keeper.withdraw():
                self._greeter.say_goodbye(keeper.lease.me)
            else:
                logger.warning(
                    "the other nodes could not be told that node %s has left: they will notice "
                    "within about %g s",
                    self.node,
                    self.duration,
                )
        self._greeter.close()

    async def aclose(self) -> None:
        """Renew the lease no more: unless it was left before, it runs out."""
        self._greeter.close()
        await self._stop_living()

    async def _stop_living(self) -> None:
        if (life := self._life) is not None:
            self._life = None
            life.cancel()
            await asyncio.wait([life])

    async def _join(self) -> None:
        me = Peer(self.node, "".join(secrets.choice(_DIGITS) for _ in range(8)))
        await self._listener.on_joining(me)
        self._joining = Joining(
            me, self.duration, self._store, self._asking, self._clock, floor=self.floor
        )
        self._asking.quiet = 0.0
        lease, nodes = await self._joining.take_lease()
        self._asking.quiet = self.duration / 2
        self._joining = None
        members = Members(me, self.duration, self.floor)
        for node in nodes:
            members.found(self._clock(), node)
        self._keeper = keeper = self._keeper_of(lease)
        self._watcher = Watcher(members, keeper, self._listener)
        self._greeter.on_hello = self._heard
        logger.info("node %s has joined the cluster", me)
        tell(self._listener.on_joined, me)
        keeper.renewed()

    def _keeper_of(self, lease: Lease) -> Keeper:
        return Keeper(lease, self._store, self._asking, self._clock, self._listener)

    def _heard(self, hello: HelloFrame) -> None:
        if self._watcher is not None:
            self._watcher.members.heard(self._clock(), hello)
            self._watcher.notice()

    async def _live(self) -> None:
        """Be a member, again and again, until it is cancelled."""
        while True:
            why = await self._be_member()
            logger.error(
                "node %s is not a member of the cluster any more: %s. All its processes end, then "
                "it joins again",
                self.me,
                why,
            )
            self._keeper = self._watcher = None
            try:
                await self._listener.on_dead(why)
            except Exception:
                logger.exception("what ran as a member that is dead could not be ended")
            while self._keeper is None:
                try:
                    await self._join()
                except Exception as error:
                    is_ours = isinstance(error, CannotJoin)
                    logger.log(
                        logging.ERROR,
                        "node %s cannot join again yet: %s",
                        self.node,
                        error,
                        exc_info=None if is_ours else error,
                    )
                    await asyncio.sleep(self.duration)

    async def _be_member(self) -> str:
        """Keep the lease until it is lost; returns why."""
        assert self._keeper is not None  # noqa: S101 - it has joined
        assert self._watcher is not None  # noqa: S101
        keeper = self._keeper
        parts = (
            keeper.keep(),
            keeper.watch(),
            self._watcher.watch(),
            self._greeter.greet(keeper.lease.me),
        )
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                logger.error("an error of the membership itself", exc_info=end)
        return keeper.lease.why or "an error of its own"
