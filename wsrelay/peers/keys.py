"""The keys of names in the cluster's store that are this node's.

`cluster/claims.py` says what to ask of the store; here that is carried out, as often as it takes.
Claims wait for the store and for the end of other nodes, never for what those answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import secrets
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final, TypeVar

from msgspec import Struct, field, structs

from wsrelay.cluster import claims
from wsrelay.cluster.claims import NameClaim, Owned, Won
from wsrelay.cluster.peer import Peer
from wsrelay.cluster.ports import Conflict, Entry, Store, Unavailable
from wsrelay.errors import WireError, WsrelayError
from wsrelay.values.pid import PID

from .circle import Bell, Circle

__all__ = ["HeldKey", "NameKeys", "Wait"]

logger = logging.getLogger(__name__)

_PAUSE: Final = 0.1
"""Seconds until a store that did not answer is asked again."""

_LOOKS: Final = (0.0, 0.1, 1.0, 5.0)
"""Seconds from one look to the next whether a late write has brought a key back."""

_AT_ONCE: Final = 64
"""Releases and the like that are under way at a time; a process may have thousands of names."""

_SYNCED: Final = 600.0
"""Seconds after which what a store has written is on its disk; JetStream syncs every 120 s."""

_REMEMBERED: Final = 1_000
"""Releases that are looked at again when the store was away; a key that was missed only takes room
until somebody asks for its name."""

T = TypeVar("T")


class Wait(Struct):
    """What somebody waits for, who is told that if it takes too long."""

    why: str = "nothing has come of it"


class HeldKey(Struct, eq=False):
    """A name whose key is this node's."""

    won: Won
    since: float
    """The event loop's time at which it was claimed."""
    count: int = 0
    """Processes that have had the name under this claim."""
    pid: PID | None = None
    """The process that has it."""
    freed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when this node does not have the key any more."""
    check: asyncio.Task[None] | None = None
    """Looks whether the store has lost the key, and writes it again."""

    @property
    def fence(self) -> int:
        """The fence of the process that has had the name last."""
        return claims.fence(self.won.claim.floor, self.won.revision, self.count - 1)

    def let_go(self) -> None:
        """Write the key no more: another claim, or none, is the node's from now on."""
        if self.check is not None:
            self.check.cancel()


class NameKeys:
    """The keys of one node; `bell` rings when what its claims wait for may have changed.

    `taken` is asked when the store has lost a key and given it to another node: whether that has a
    process of the name. If so, it has called `lose`.
    """

    def __init__(
        self,
        store: Store,
        circle: Circle,
        bell: Bell,
        taken: Callable[[str, Peer], Coroutine[Any, Any, bool]],
    ) -> None:
        self.held: dict[str, HeldKey] = {}
        self.claiming: dict[str, asyncio.Future[Owned | None]] = {}
        """Claims that are under way; done with what `claim` returns, None also if it has failed."""
        self.releasing: dict[str, HeldKey] = {}
        self._floor = circle.floor
        self._store = store
        self._circle = circle
        self._bell = bell
        self._taken = taken
        self._nonces: set[str] = set()
        """Those of the keys that are held or being claimed."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._released: deque[tuple[float, str]] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        """How many keys are this node's, or are being written or deleted."""
        return len({*self.held, *self.claiming, *self.releasing})

    def has(self, name: str) -> bool:
        """Whether this node decides the name without another claim."""
        held = self.held.get(name)
        return held is not None and held.count < claims.SUCCESSORS

    # Claims

    async def claim(self, name: str, wait: Wait) -> Owned | None:
        """Claim a name; returns who has it instead, or None: look whether it is held now.

        There is one claim of a name at a time, whoever wants it here. Raises as `claims.claimed`.
        """
        if (claiming := self.claiming.get(name)) is not None:
            await asyncio.wait([claiming])
            return None if claiming.cancelled() else claiming.result()
        claiming = self.claiming[name] = asyncio.get_running_loop().create_future()
        outcome: Owned | None = None
        try:
            outcome = await self._claim(name, wait)
        finally:
            del self.claiming[name]
            if not claiming.done():
                claiming.set_result(outcome)
        return outcome

    async def _claim(self, name: str, wait: Wait) -> Owned | None:
        await self._until_it_may_be_written(wait)
        # The deletion of a key may be under way: the claim wins over it, or finds it done.
        former = self.held.get(name) or self.releasing.get(name)
        expected = 0 if former is None else former.won.revision
        me = self._me()
        claim = NameClaim(name, me.node, me.incarnation, secrets.token_hex(8), self._floor.value)
        self._nonces.add(claim.nonce)
        try:
            steps = claims.claimed(claim, self._circle.is_down, expected)
            outcome = await self._carry_out(steps, wait)
        except BaseException:
            self._nonces.discard(claim.nonce)
            self.clear_later(name)
            raise
        if isinstance(outcome, Owned):
            self._nonces.discard(claim.nonce)
            if outcome.doubtful:
                self.clear_later(name)
            return outcome
        if claim.owner != self._circle.me:  # this incarnation has been declared dead meanwhile
            return None
        held = HeldKey(outcome, asyncio.get_running_loop().time())
        if (former := self.held.get(name)) is not None:
            self._nonces.discard(former.won.claim.nonce)
            former.let_go()
            held.pid, held.freed = former.pid, former.freed
        self.held[name] = held
        return None

    # Releases

    def release(self, name: str) -> None:
        """Delete the key of a name that nobody has or holds here any more."""
        held = self.releasing[name] = self.held.pop(name)
        self._nonces.discard(held.won.claim.nonce)
        held.let_go()
        self._begin(self._release(name, held))

    async def _release(self, name: str, held: HeldKey) -> None:
        try:
            async with self._turns:
                await self._carry_out(claims.released(held.won))
        finally:
            held.freed.set()
            if self.releasing.get(name) is held:
                del self.releasing[name]
        self._released.append((asyncio.get_running_loop().time(), name))
        if held.won.doubtful:
            self.clear_later(name)

    async def clear(self, name: str) -> None:
        """Delete the key of a name if it says that it is this node's, and it is not."""
        if (me := self._circle.me) is None:
            return
        steps = claims.cleared(name, me, self._nonces.__contains__)
        async with self._turns:
            await self._carry_out(steps)

    def clear_later(self, name: str) -> None:
        """Clear a key that a late write of this node may bring back."""
        self._begin(self._clear_later(name))

    async def _clear_later(self, name: str) -> None:
        for pause in _LOOKS:
            await asyncio.sleep(pause)
            await self.clear(name)

    # Keys of the dead, and of a store that has lost some

    def tidy(self) -> None:
        """Delete the keys of names that nobody has.

        They are those of incarnations that are down, which others could claim, and those of this
        one that are not held: the store has lost that they were deleted.
        """
        self._begin(self._tidy())

    async def _tidy(self) -> None:
        for entry in await self._within(functools.partial(self._store.list, claims.PREFIX)):
            try:
                claim = NameClaim.of(entry)
            except WireError as error:
                logger.warning("%s", error)
                continue
            self._floor.learn(claim.floor)
            if claim.owner == self._circle.me:
                is_left = claim.nonce not in self._nonces
            else:
                is_left = self._circle.is_down(claim.owner)
            if is_left:
                delete = functools.partial(self._store.delete, entry.key, entry.revision)
                async with self._turns:
                    with contextlib.suppress(Conflict):
                        await self._within(delete)

    def claim_again(self) -> None:
        """Write all keys again that the store has lost, and delete again what came back.

        Claims from now on have a floor above all that was seen.
        """
        self._floor.learn(floor := self._new_floor())
        for name, held in list(self.held.items()):
            self._check(name, held, floor)
        self.tidy()

    def check(self) -> None:
        """Look at what was written last: a store that was away may have lost that unnoticed.

        Others may have written so much since that its revisions are beyond those that were seen.
        """
        since, floor = asyncio.get_running_loop().time() - _SYNCED, self._new_floor()
        for name, held in list(self.held.items()):
            if held.since > since:
                self._check(name, held, floor)
        for released, name in list(self._released):
            if released > since:
                self._begin(self.clear(name))

    def _new_floor(self) -> int:
        return max(self._floor.value, self._store.sequence) + claims.HEADROOM

    def _check(self, name: str, held: HeldKey, floor: int) -> None:
        held.let_go()
        held.check = self._begin(self._claim_again(name, held, floor))

    async def _claim_again(self, name: str, held: HeldKey, floor: int) -> None:
        claim = structs.replace(held.won.claim, floor=floor)
        try:
            while True:
                async with self._turns:
                    steps = claims.claimed(claim, self._circle.is_down, known=False)
                    outcome = await self._carry_out(steps)
                if isinstance(outcome, Won):
                    held.won = outcome
                    self._floor.learn(outcome.claim.floor)
                    return
                if await self._taken(name, outcome.owner):
                    return
        except asyncio.CancelledError:
            if self.releasing.get(name) is held or self.held.get(name) not in {None, held}:
                self.clear_later(name)  # what was under way may be written yet
            raise

    def lose(self, name: str) -> None:
        """Note that another node has the name; what has found that out is at its end."""
        held = self.held.pop(name)
        self._nonces.discard(held.won.claim.nonce)
        held.freed.set()

    # Asking the store

    async def _carry_out(
        self,
        steps: Generator[claims.Operation, Entry | int | None, T],
        wait: Wait | None = None,
    ) -> T:
        """Carry out what a generator of `claims` asks of the store; only a claim has a `wait`."""
        error: WsrelayError | None = None
        answer: Entry | int | None = None
        while True:
            try:
                step = steps.send(answer) if error is None else steps.throw(error)
            except StopIteration as end:
                value: T = end.value
                return value
            if isinstance(step, claims.Put):
                await self._until_it_may_be_written(wait)
            answer = error = None
            try:
                answer = await self._ask(step)
            except Conflict as conflict:
                error = conflict
            except Unavailable as unavailable:
                error = unavailable
                if wait is not None:
                    wait.why = f"the cluster's store does not answer ({unavailable})"
                await asyncio.sleep(_PAUSE)

    async def _ask(self, step: claims.Operation) -> Entry | int | None:
        match step:
            case claims.Get():
                return await self._store.get(step.key)
            case claims.Put():
                return await self._store.put(step.key, step.value, step.expected)
            case claims.Delete():
                return await self._store.delete(step.key, step.expected)

    async def _within(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Ask the store until it answers."""
        while True:
            try:
                return await ask()
            except Unavailable:
                await asyncio.sleep(_PAUSE)

    def _me(self) -> Peer:
        me = self._circle.me
        assert me is not None  # noqa: S101 - nobody else may claim
        return me

    async def _until_it_may_be_written(self, wait: Wait | None) -> None:
        """Wait until a new name may be claimed, or (None) one that is this node's written again.

        A key that a node misses which has been declared dead has been deleted, and not lost.
        """
        while not (self._circle.is_certain() if wait is None else self._circle.may_claim()):
            if wait is not None:
                wait.why = "this node's lease of the cluster is not renewed"
            await self._bell.heard()

    # Tasks, and the end

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a key of the cluster's names: %s", error, exc_info=error)

    async def released(self, seconds: float) -> None:
        """Wait until the keys that are being released have been deleted, for so long at most."""
        releases = [held.freed.wait() for held in self.releasing.values()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*releases)

    def forget(self) -> None:
        """Forget all keys: this incarnation is dead, and others may take them."""
        for held in (*self.held.values(), *self.releasing.values()):
            held.freed.set()
        self.held.clear()
        self.releasing.clear()
        self._nonces.clear()
        for task in list(self._tasks):
            task.cancel()
