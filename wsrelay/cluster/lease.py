"""A node's own lease: how long it may act for the cluster without having heard from the store.

A node writes the key `lease.<its name>` each sixth of the lease, by compare-and-set. Others may
declare it dead, by a compare-and-set of `dead` on that key, when they have seen the key unchanged
for a whole lease. So that its processes are stopped before that, every deadline counts from the
moment *before* the last renewal that succeeded was issued:

    since                   3/6              4/6                 6/6 of the lease
      |------- HOLDING ------|- NO_NEW_NAMES -|------ FROZEN ------|- others may write `dead`

Nobody saw that renewal earlier than it was issued, so nobody has waited for a lease before 6/6. An
answer that comes late says nothing else: it moves `since` to a moment that may be long ago, and
thaws nobody if 4/6 from there have passed. Clocks of different machines are not compared.

What a renewal came to is not known if it was refused or not answered. It may have been carried
out, or may still be, so the key is read: if this incarnation is in it, its revision is the one from
which the next renewal is written. Only what stands in the key can say that the node is dead:
`dead`, another incarnation, or nothing. A reading moves no deadline.

Every record also has the `Floor` of fences (`claims`) as far as its writer knows it. Whoever joins
reads all of them before it claims anything, and a record is written over or deleted only by who has
read it: so it is not forgotten for as long as the store lives, whoever does not.

The driver does what `step` says when it is `due`: `RENEW` (call `issued`, write `record`, then call
`renewed` or `refused`) or `READ_BACK` (read the key, then call `read` or `unread`).
"""

from __future__ import annotations

import enum
import math
import re
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from wsrelay.errors import WireError

from .frames import PROTOCOL, TOKEN, Token
from .peer import Peer
from .ports import Entry

__all__ = [
    "PREFIX",
    "Floor",
    "Hold",
    "Lease",
    "LeaseRecord",
    "LeaseState",
    "LeaseStep",
    "is_token",
    "key_of_node",
    "misfit",
]

PREFIX: Final = "lease."
"""What the keys of leases begin with; the node's name follows."""

_TOKEN: Final = re.compile(TOKEN)

_HIGHEST: Final = 10**14
"""Beyond it a fence would be no signed number of 64 bits."""


def is_token(text: object) -> bool:
    """Whether the text can be a part of a key or a subject, as names of nodes must."""
    return isinstance(text, str) and _TOKEN.fullmatch(text) is not None


def key_of_node(node: str) -> str:
    """Return the key of a node's lease."""
    return PREFIX + node


class Floor:
    """What claims from now on add to revisions in fences: one for each node, whatever dies."""

    def __init__(self) -> None:
        self.value = 0

    def learn(self, value: int) -> None:
        """Take one that stands in the store, or that another node has."""
        self.value = max(self.value, value)


class LeaseState(enum.Enum):
    """What the key of a lease says of the incarnation in it."""

    ALIVE = "alive"
    DEAD = "dead"
    """Another node has found that it renews no more, and has decided that it is dead."""
    GONE = "gone"
    """It has left by itself, and nothing of it runs any more."""


class LeaseRecord(Struct, frozen=True, omit_defaults=True):
    """The value of a lease's key. JSON, so that operators can read it with NATS' own tools."""

    incarnation: Token
    state: LeaseState
    lease: float
    """Seconds. All nodes of a cluster have the same."""
    protocol: int = PROTOCOL
    seen: int = 0
    """The highest revision that the writer had seen when it wrote: less than that of this key."""
    by: Annotated[str, Meta(max_length=64)] = ""
    """Which node has declared it dead."""
    floor: Annotated[int, Meta(ge=0, le=_HIGHEST)] = 0
    """The highest floor of fences that the writer knew."""

    def encode(self) -> bytes:
        """Return it as the value of a key."""
        return msgspec.json.encode(self)

    def declared_dead(self, by: str, floor: int = 0) -> LeaseRecord:
        """Return what a node writes over it that declares its incarnation dead."""
        state, highest = LeaseState.DEAD, max(self.floor, floor)
        return LeaseRecord(self.incarnation, state, self.lease, by=by, floor=highest)

    @classmethod
    def of(cls, entry: Entry) -> LeaseRecord:
        """Read the value of a key; raises `WireError` if no node of ours can have written it."""
        try:
            return msgspec.json.decode(entry.value, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WireError(
                f"the key {entry.key} of the cluster's bucket holds no lease ({error}): whatever "
                "wrote it must not write there; delete the key"
            ) from None


def misfit(record: LeaseRecord, lease: float) -> str:
    """Return why a node cannot be in a cluster with one whose lease is so long; empty if it can."""
    if record.protocol != PROTOCOL:
        return f"version {record.protocol} of the protocol between nodes, here {PROTOCOL}"
    if record.lease != lease:
        return f"a lease of {record.lease:g} s, here {lease:g} s"
    return ""


class Hold(enum.Enum):
    """What a node may do by its lease."""

    HOLDING = "holding"
    NO_NEW_NAMES = "no new names"
    FROZEN = "frozen"
    DEAD = "dead"


class LeaseStep(enum.Enum):
    """What the driver of a lease does next."""

    RENEW = "renew"
    READ_BACK = "read back"
    END = "end"


class Lease:
    """The lease of one incarnation, whose first write was issued at that time and has succeeded.

    `due` is when `step` is to be done; all times are in seconds of one monotonic clock.
    """

    def __init__(
        self,
        me: Peer,
        duration: float,
        issued: float,
        revision: int,
        floor: Floor | None = None,
    ) -> None:
        self.me = me
        self.duration = duration
        self.floor = floor or Floor()
        self.since = issued
        """When the last renewal that is known to have succeeded was issued."""
        self.revision = revision
        self.step = LeaseStep.RENEW
        self.due = issued + duration / 6
        self.why = ""
        """Why the incarnation is dead, for operators."""
        self._issued = issued
        self._seen = revision
        self._void = 0
        self._quarantine = -math.inf

    @property
    def claims_until(self) -> float:
        """The deadline from which on no new names are claimed."""
        return self.since + self.duration * 3 / 6

    @property
    def runs_until(self) -> float:
        """The deadline from which on processes with names of the cluster are frozen."""
        return self.since + self.duration * 4 / 6

    def hold(self, now: float) -> Hold:
        """Return what the node may do now."""
        if self.step is LeaseStep.END:
            return Hold.DEAD
        if now >= self.runs_until:
            return Hold.FROZEN
        return Hold.NO_NEW_NAMES if now >= self.claims_until else Hold.HOLDING

    def may_claim(self, now: float) -> bool:
        """Whether names may be claimed: not near the end, nor for a lease after lost writes."""
        return self.hold(now) is Hold.HOLDING and now >= self._quarantine

    def changes_at(self, now: float) -> float:
        """Return when `hold` or `may_claim` will be another if nothing happens until then."""
        moments = (self.claims_until, self.runs_until, self._quarantine)
        return min((moment for moment in moments if moment > now), default=math.inf)

    def issued(self, now: float, seen: int) -> LeaseRecord:
        """Issue a renewal now; returns what to write over `revision`.

        `seen` is the highest revision that was seen of the store.
        """
        self._issued = now
        # What lay above the loss of writes is void: revisions grow from below it again.
        self._seen = max(self.revision, seen if seen > self._void else 0)
        self.due = now + self.duration / 6
        return self.record(LeaseState.ALIVE, self._seen)

    def record(self, state: LeaseState, seen: int = 0) -> LeaseRecord:
        """Return what the key is to hold."""
        floor = self.floor.value
        return LeaseRecord(self.me.incarnation, state, self.duration, seen=seen, floor=floor)

    def renewed(self, now: float, revision: int) -> bool:
        """Note that it has succeeded; returns whether the store turns out to have lost writes."""
        self.since = self._issued
        self.revision = revision
        self.due = max(now, self._issued + self.duration / 6)
        return revision <= self._seen and self.writes_lost(now, self._seen)

    def refused(self, now: float) -> None:
        """Note that the renewal was not answered, or refused: the key must be read."""
        self.step = LeaseStep.READ_BACK
        self.due = now

    def read(self, now: float, entry: Entry | None, seen: int = 0) -> bool:
        """Take what the key holds; returns whether the store turns out to have lost writes.

        `seen` is the highest revision that was seen of the store.
        """
        self.why = _death(self.me, entry)
        if self.why:
            self.step = LeaseStep.END
            return False
        assert entry is not None  # noqa: S101 - or it would be dead
        is_lower = entry.revision < self.revision
        lost = is_lower and self.writes_lost(now, max(self.revision, seen))
        self.revision = entry.revision
        self.step = LeaseStep.RENEW
        self.due = now
        return lost

    def unread(self, now: float) -> None:
        """Note that the key could not be read; it is tried again soon."""
        self.due = now + self.duration / 60

    def writes_lost(self, now: float, seen: int) -> bool:
        """Claim nothing for a lease: the store has lost writes up to the revision `seen`.

        Returns whether this was not known.
        """
        is_news = seen > self._void or now >= self._quarantine
        self._void = max(self._void, seen)
        self._quarantine = now + self.duration
        return is_news


def _death(me: Peer, entry: Entry | None) -> str:
    """Return why the key says that the incarnation is dead; empty if it is not."""
    if entry is None:
        return "its key is gone"
    try:
        record = LeaseRecord.of(entry)
    except WireError as error:
        return str(error)
    if record.incarnation != me.incarnation:
        return f"another incarnation ({record.incarnation}) has its name"
    if record.state is LeaseState.DEAD:
        return f"{record.by or 'another node'} has declared it dead"
    return "it has left" if record.state is LeaseState.GONE else ""
