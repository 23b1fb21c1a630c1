"""The other nodes of a cluster, as one node sees them: who is up, and who is down for good.

A node is noticed by its hello, which comes each second over the bus, or because a key in the store
names it. What it *is* stands only in the key of its lease, which is read as often as leases are
renewed:

- it is up once an incarnation was read there that is alive, with our lease and protocol;
- it is down once `dead` or `gone` was read there, or another incarnation that is alive: a node
  that starts again writes over the key of its former incarnation only when that is dead or gone, or
  has not renewed for a whole lease (`join`);
- if the key has not changed for a whole lease, `dead` is written there by compare-and-set. If that
  succeeds it is down. Nobody is held to be dead by the opinion of one node.

For that lease the key must have been read without a gap, and the reader's own lease renewed: while
the store is away for everyone, nobody can renew, and the wait begins anew afterwards. So a node
whose way to the store is good and whose stalls are short is never declared dead. A key that is
gone, or has something else in it, is one that does not change: it may have been lost by the store,
and its owner still runs until it notices.

`NodeUp` and `NodeDown` come once each for an incarnation, `NodeDown` last. It comes without a
`NodeUp` for one that was only named by a key. If a store loses a decision that somebody was dead,
whoever remembers it decides it again.

The driver calls `reads` when they are `due`, reads the keys and passes each to `read`, for one node
one after the other; it carries out the effects in order.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Final

from msgspec import Struct

from wsrelay.errors import WireError

from .frames import HelloFrame
from .lease import Floor, LeaseRecord, LeaseState, is_token, misfit
from .peer import Peer
from .ports import Entry

__all__ = [
    "DeclareDead",
    "ForgetKey",
    "KeyWatch",
    "MemberEffect",
    "MemberStatus",
    "Members",
    "Misfit",
    "NodeDown",
    "NodeUp",
    "WritesLost",
]

_MOST: Final = 1_000
"""Nodes that are watched: whoever may publish can say hello under any name."""

_REMEMBERED: Final = 10_000
"""Incarnations that are remembered to be down, the most recent ones."""

_KEPT: Final = 3600.0
"""Seconds after which the key of a node that is dead or gone is deleted."""

_SELDOM: Final = 600.0
"""Seconds between readings of the key of a node that is dead or gone."""


class NodeUp(Struct, frozen=True):
    """The incarnation is a member."""

    peer: Peer


class NodeDown(Struct, frozen=True):
    """The incarnation is no member any more, and never will be again."""

    peer: Peer
    why: str


class DeclareDead(Struct, frozen=True):
    """Write `value` over the key if it has that revision; call `declared` if that succeeds."""

    peer: Peer
    value: LeaseRecord
    expected: int


class ForgetKey(Struct, frozen=True):
    """Delete the key of a node that is dead or gone for long, if it has that revision."""

    node: str
    expected: int


class Misfit(Struct, frozen=True):
    """A node cannot be a member for that reason; it is told once for each incarnation."""

    peer: Peer
    why: str


class WritesLost(Struct, frozen=True):
    """The store has lost writes up to the revision `seen`, as another node has noticed."""

    seen: int


MemberEffect = NodeUp | NodeDown | DeclareDead | ForgetKey | Misfit | WritesLost


class MemberStatus(Struct, frozen=True):
    """What is known of another node, for operators."""

    node: str
    incarnation: str
    state: str
    """`up`, `unknown` (nothing read yet), `dead`, `gone`, `misfit` or `silent` (not renewed)."""
    unchanged: float | None
    """Seconds for which its lease was seen not to be renewed; None while it cannot be seen."""
    hello: HelloFrame | None
    """What it said last, for at most half a lease."""


class KeyWatch:
    """Since when a key was seen unchanged, without a gap of more than so many seconds."""

    def __init__(self, gap: float) -> None:
        self._gap = gap
        self._revision = -1
        self._since = math.inf
        self._last = -math.inf

    def seen(self, revision: int, issued: float, now: float) -> float:
        """Take a reading that was answered now; returns since when there was certainly no write.

        Which is when the first of the readings was answered. Until when there was none is when the
        last of them was `issued`.
        """
        if revision != self._revision or issued - self._last > self._gap:
            self._revision = revision
            self._since = now
        self._last = now
        return self._since

    @property
    def unchanged(self) -> float | None:
        """The seconds between the readings that were all the same; None if there is none."""
        return None if self._since == math.inf else self._last - self._since

    def anew(self) -> None:
        """Forget what was seen: something was in the way of seeing more."""
        self._revision = -1
        self._since = math.inf


class _Node:
    """What is known of one node by its name."""

    def __init__(self, name: str, gap: float, due: float) -> None:
        self.name = name
        self.watch = KeyWatch(gap)
        self.watched = (math.inf, -math.inf)
        """Since when the key is unchanged, and the issue of the last reading of that."""
        self.due = due
        self.incarnation = ""
        """The one that was alive when the key was read last; empty when it is down."""
        self.lease = 0.0
        self.state = "unknown"
        self.named: dict[str, float] = {}
        """Incarnations that keys have named, of which nothing is known, and when they have."""
        self.hello: HelloFrame | None = None
        self.heard = -math.inf
        self.settled = (0, math.inf)
        """The revision of the key that says that it is dead or gone, and when it first did."""

    @property
    def up(self) -> bool:
        return self.state == "up"

    @property
    def peer(self) -> Peer:
        return Peer(self.name, self.incarnation)


class Members:
    """The other nodes of a cluster; `lease` is in seconds, as all times here.

    `floor` learns what their keys have.
    """

    def __init__(self, me: Peer, lease: float, floor: Floor | None = None) -> None:
        self._me = me
        self._lease = lease
        self._floor = floor or Floor()
        self._nodes: dict[str, _Node] = {}
        self._down: OrderedDict[Peer, None] = OrderedDict()

    # What is known

    @property
    def up(self) -> list[Peer]:
        """The other members."""
        return [node.peer for node in self._nodes.values() if node.up]

    def is_up(self, peer: tuple[str, str]) -> bool:
        """Whether the incarnation is a member, another than this node."""
        node = self._nodes.get(peer[0])
        return node is not None and node.up and node.incarnation == peer[1]

    def is_down(self, peer: tuple[str, str]) -> bool:
        """Whether it is decided that the incarnation is dead or gone; if not, call `named`."""
        if peer[0] == self._me.node:
            return peer[1] != self._me.incarnation
        return peer in self._down

    def loads(self, now: float) -> dict[Peer, HelloFrame]:
        """Return what the members said last, without those that have been silent for a while."""
        return {
            node.peer: hello
            for node in self._nodes.values()
            if node.up and (hello := self._hello(node, now)) is not None
        }

    def status(self, now: float) -> list[MemberStatus]:
        """Return all that are known, by name."""
        return [
            MemberStatus(
                node.name,
                node.incarnation,
                "silent" if node.up and (unchanged or 0.0) > self._lease / 2 else node.state,
                unchanged,
                self._hello(node, now),
            )
            for _, node in sorted(self._nodes.items())
            for unchanged in [node.watch.unchanged]
        ]

    def _hello(self, node: _Node, now: float) -> HelloFrame | None:
        hello = node.hello
        if hello is None or hello.incarnation != node.incarnation:
            return None
        return hello if now - node.heard < self._lease / 2 else None

    # What is noticed

    def heard(self, now: float, hello: HelloFrame) -> None:
        """Take what a node says of itself."""
        if hello.node == self._me.node or (node := self._node(now, hello.node)) is None:
            return
        is_known = node.up and hello.incarnation == node.incarnation
        if is_known or not node.up:
            node.hello = hello
            node.heard = now
        if hello.leaving or not is_known:
            node.due = min(node.due, now)

    def named(self, now: float, peer: tuple[str, str]) -> None:
        """Find out about an incarnation that a key names: the key of its node is read."""
        name, incarnation = peer
        if name == self._me.node or self.is_down(peer):
            return
        if (node := self._node(now, name)) is None or incarnation == node.incarnation:
            return
        if len(node.named) < _MOST:
            node.named.setdefault(incarnation, now)
            node.due = min(node.due, now)

    def found(self, now: float, node: str) -> None:
        """Read the key of that node's lease from now on."""
        if node != self._me.node:
            self._node(now, node)

    def hindered(self) -> None:
        """Begin all waits anew: something could not be read, or my own lease not be renewed."""
        for node in self._nodes.values():
            node.watch.anew()

    def _node(self, now: float, name: str) -> _Node | None:
        node = self._nodes.get(name)
        if node is None and len(self._nodes) < _MOST and is_token(name):
            node = self._nodes[name] = _Node(name, self._lease / 3, now)
        return node

    # What is read

    @property
    def due(self) -> float:
        """When keys are to be read next."""
        return min((node.due for node in self._nodes.values()), default=math.inf)

    def reads(self, now: float) -> list[str]:
        """Return the nodes whose keys are to be read now."""
        due = [node for node in self._nodes.values() if node.due <= now]
        for node in due:
            node.due = now + self._lease / 6
        return [node.name for node in due]

    def read(
        self, name: str, entry: Entry | None, *, issued: float, now: float
    ) -> list[MemberEffect]:
        """Take what a node's key held at some moment between `issued` and now."""
        effects: list[MemberEffect] = []
        if (node := self._nodes.get(name)) is None:
            return effects
        node.watched = node.watch.seen(entry.revision if entry else 0, issued, now), issued
        if entry is None or (record := _record(entry)) is None:
            self._absent(node, entry, effects)
            if not node.incarnation and not node.named and now - node.heard > self._lease:
                del self._nodes[name]  # whoever said hello under that name has no lease
            return effects
        self._floor.learn(record.floor)
        if record.seen >= entry.revision:
            effects.append(WritesLost(record.seen))
        there = Peer(name, record.incarnation)
        if record.state is not LeaseState.ALIVE:
            self._ended(node, there, record, effects)
            self._superseded(node, there, issued, effects)
            self._absent(node, entry, effects)
            if not node.incarnation and not node.named:
                node.state = record.state.value
                self._settled(node, entry, now, effects)
        elif there in self._down:
            self._declare(there, record.lease, entry, effects)  # the store has lost that
        else:
            if node.incarnation != there.incarnation:
                self._end(node, node.peer, f"{there} has its name", effects)
            self._superseded(node, there, issued, effects)
            self._alive(node, there, record, effects)
            if self._is_silent(node):
                self._declare(there, record.lease, entry, effects)
        return effects

    def declared(self, now: float, peer: Peer) -> list[MemberEffect]:
        """Note that the `value` of `DeclareDead` was written: that is the decision."""
        effects: list[MemberEffect] = []
        if (node := self._nodes.get(peer.node)) is not None:
            self._end(node, peer, f"{self._me.node} has declared it dead", effects)
            node.due = now  # others may have waited for what stands there now
        return effects

    def _alive(
        self, node: _Node, there: Peer, record: LeaseRecord, effects: list[MemberEffect]
    ) -> None:
        node.named.pop(there.incarnation, None)
        if node.incarnation == there.incarnation:
            return
        node.incarnation = there.incarnation
        node.lease = record.lease
        if why := misfit(record, self._lease):
            node.state = "misfit"
            effects.append(Misfit(there, why))
        else:
            node.state = "up"
            effects.append(NodeUp(there))

    def _ended(
        self, node: _Node, there: Peer, record: LeaseRecord, effects: list[MemberEffect]
    ) -> None:
        """Believe the key that an incarnation is dead or gone."""
        by = f"{record.by} has declared it dead" if record.by else "it was declared dead"
        self._end(node, there, "it has left" if record.state is LeaseState.GONE else by, effects)

    def _superseded(
        self, node: _Node, there: Peer, issued: float, effects: list[MemberEffect]
    ) -> None:
        """Put down those that a key has named if the node's key has another by now."""
        for incarnation, named in list(node.named.items()):
            # What was read before it was named may be what was there before it.
            if incarnation != there.incarnation and issued > named:
                self._end(node, Peer(node.name, incarnation), f"{there} has its name", effects)

    def _is_silent(self, node: _Node) -> bool:
        """Whether the key is unchanged for a lease; if not, it is read as soon as it may be."""
        since, issued = node.watched
        end = since + max(self._lease, node.lease)
        if issued < end:
            node.due = min(node.due, end)
        return issued >= end

    def _absent(self, node: _Node, entry: Entry | None, effects: list[MemberEffect]) -> None:
        """Declare dead who is known or named and has not been in the key for a lease."""
        waited_for = node.incarnation or next(iter(node.named), "")
        if waited_for and self._is_silent(node):
            self._declare(Peer(node.name, waited_for), node.lease, entry, effects)

    def _declare(
        self, peer: Peer, lease: float, entry: Entry | None, effects: list[MemberEffect]
    ) -> None:
        by, floor = self._me.node, self._floor.value
        record = LeaseRecord(peer.incarnation, LeaseState.DEAD, lease, by=by, floor=floor)
        effects.append(DeclareDead(peer, record, entry.revision if entry else 0))

    def _settled(self, node: _Node, entry: Entry, now: float, effects: list[MemberEffect]) -> None:
        """Read the key seldom, and let it be deleted in the end."""
        revision, since = node.settled
        if revision != entry.revision:
            node.settled = (entry.revision, now)
        elif now - since >= _KEPT:
            effects.append(ForgetKey(node.name, revision))
        node.due = now + _SELDOM

    def _end(self, node: _Node, peer: Peer, why: str, effects: list[MemberEffect]) -> None:
        """Put an incarnation down for good, and tell it if it was known or named."""
        if not peer.incarnation:
            return
        is_told = node.named.pop(peer.incarnation, None) is not None
        if node.incarnation == peer.incarnation:
            is_told = True
            node.incarnation = ""
            node.lease = 0.0
            node.state = "dead"
            node.hello = None
        if is_told and peer not in self._down:
            effects.append(NodeDown(peer, why))
        self._down[peer] = None
        self._down.move_to_end(peer)
        if len(self._down) > _REMEMBERED:
            self._down.popitem(last=False)


def _record(entry: Entry) -> LeaseRecord | None:
    """Return what the key holds; None if it is nothing that a node has written."""
    try:
        return LeaseRecord.of(entry)
    except WireError:
        return None
