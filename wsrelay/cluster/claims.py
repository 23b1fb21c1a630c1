"""Claims of names: which node decides a name, by compare-and-set on one key of the store.

A key is written by one node at a time, the one that it names: the owner. It claims the name before
the first process of that name runs, keeps the key while its kernel has a process under the name or
one that holds it, and deletes it when both are gone. Others leave a living owner's key alone; they
replace the key of an incarnation that has been declared dead, which is for `members` to say.

Each operation here is a generator: it yields what to ask of the store, is sent the answer, and has
`Conflict` or `Unavailable` thrown in. So nothing here waits or knows the time; whoever drives it
may stop at a deadline.

No answer means that the outcome is not known: the write may have been carried out, or it may be
carried out later. Therefore every claim has a nonce. Whatever a write came to, the key is read, and
the claim has won if its nonce is there. A write that is late cannot do harm while the key is held,
since it expects a revision that is gone. After a release it may bring the key back, with an owner
that does not know of it (`doubtful` says that this can happen): `cleared` deletes such a key, and
whoever is asked for a name that it does not own does that first.

Fences. A fence is a number that grows with each owner of a name, over releases too. It is made of
the revision of the claim's write: the revisions of a store grow with every write to any of its
keys, and a claim that wins is written after the write that ended the one before it, be that a
deletion or a takeover, and even if the marker of the deletion has been purged since. Processes that
follow each other on one node, without a new claim, are told apart by a count below the revision.
Only a store that has lost writes uses revisions again: then the claims from there on add a `floor`,
above all that was seen before. It is kept in the keys of leases (`lease.Floor`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator
from typing import Final

import msgspec
from msgspec import Struct, structs

from wsrelay.errors import NameTaken, WireError

from .peer import Peer
from .ports import Conflict, Entry, Unavailable

__all__ = [
    "HEADROOM",
    "PREFIX",
    "SUCCESSORS",
    "Delete",
    "Get",
    "NameClaim",
    "Operation",
    "Outcome",
    "Owned",
    "Put",
    "Step",
    "Won",
    "claimed",
    "cleared",
    "fence",
    "is_local",
    "key_of",
    "released",
]

PREFIX: Final = "name."
"""What the keys of names begin with."""

SUCCESSORS: Final = 65_536
"""Owners of a name that one claim can tell apart; the next one claims again.

With 16 bits for these, a signed number of 64 bits has room for 10^14 writes to the store.
"""

HEADROOM: Final = 1_000_000
"""What a floor adds to the highest revision seen: more than others can have written unseen, since
every node writes its lease each second and so sees how far the store is."""

_LONGEST: Final = 200
_KEPT: Final = 100
"""Characters of an escaped name that a key holds as it is, and those that it keeps of a longer
one."""

_ESCAPED: Final = re.compile(rb"[^A-Za-z0-9_/-]")


def is_local(name: str) -> bool:
    """Whether the name stays on its node, and no other node knows of it."""
    return name.startswith("local/")


def key_of(name: str) -> str:
    """Return the key of a name: its letters, digits and `_/-`; other bytes are `=` and two digits.

    That of a long name ends in a hash, so the full name is in the value. (Keys of NATS may have
    `-/_=.`, letters and digits; dots separate tokens, and a subject must fit into 4 KB.)
    """
    data = name.encode()
    text = _ESCAPED.sub(lambda one: b"=%02X" % one[0][0], data).decode()
    if len(text) > _LONGEST:
        text = f"{text[:_KEPT]}=={hashlib.sha256(data).hexdigest()}"
    return PREFIX + text


class NameClaim(Struct, frozen=True):
    """The value of a name's key. JSON, so that operators can read it with NATS' own tools."""

    name: str
    node: str
    incarnation: str
    nonce: str
    floor: int = 0

    @property
    def owner(self) -> Peer:
        """The incarnation of a node that has the name."""
        return Peer(self.node, self.incarnation)

    def encode(self) -> bytes:
        """Return it as the value of a key."""
        return msgspec.json.encode(self)

    @classmethod
    def of(cls, entry: Entry) -> NameClaim:
        """Read the value of a key; raises `WireError` if no node of ours can have written it."""
        try:
            return msgspec.json.decode(entry.value, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WireError(
                f"the key {entry.key} of the cluster's bucket holds no claim ({error}): whatever "
                "wrote it must not write there; delete the key"
            ) from None


def fence(floor: int, revision: int, count: int) -> int:
    """Return the fence of the owner with that number, from 0, under one claim."""
    return (floor + revision) * SUCCESSORS + count


# What the generators yield, and what they are sent


class Get(Struct, frozen=True):
    """Read a key; the answer is an `Entry` or None."""

    key: str


class Put(Struct, frozen=True):
    """Write a key whose revision is the expected one, 0 for none; the answer is the new one."""

    key: str
    value: bytes
    expected: int


class Delete(Struct, frozen=True):
    """Delete a key whose revision is the expected one; the answer is that of the deletion."""

    key: str
    expected: int


Operation = Get | Put | Delete


class Won(Struct, frozen=True):
    """The name is this node's.

    `doubtful`: a write of this claim may still be on its way, and may write the key after it has
    been deleted.
    """

    claim: NameClaim
    revision: int
    doubtful: bool = False


class Owned(Struct, frozen=True):
    """The name belongs to another node, which was not known to be dead; `doubtful` as in `Won`."""

    owner: Peer
    revision: int
    doubtful: bool = False


Outcome = Won | Owned
Step = Generator[Operation, "Entry | int | None"]


def claimed(
    claim: NameClaim,
    dead: Callable[[Peer], bool],
    expected: int = 0,
    *,
    known: bool = True,
) -> Generator[Operation, Entry | int | None, Outcome]:
    """Claim a name: write its key if nobody has it, or a dead incarnation, or this one.

    `expected` is the revision that the key probably has, 0 for none. Without `known` the key is
    read before it is written: to claim again what a store has lost. The floor is at least that of
    the claim before. Raises `WireError`, and `NameTaken` if two names have the same key.
    """
    key = key_of(claim.name)
    doubtful = False
    while True:
        if known:
            try:
                revision = yield Put(key, claim.encode(), expected)
            except Conflict:
                pass  # somebody else's write, or this claim's own that was late
            except Unavailable:
                doubtful = True
            else:
                assert isinstance(revision, int)  # noqa: S101 - what a put is answered with
                return Won(claim, revision, doubtful)
        entry = yield from _read(key)
        known = True
        if entry is None:
            expected = 0
            continue
        there = _claim_in(entry, claim.name)
        if there.nonce == claim.nonce and there.owner == claim.owner:
            return Won(there, entry.revision, doubtful)
        if there.owner != claim.owner and not dead(there.owner):
            return Owned(there.owner, entry.revision, doubtful)
        claim = structs.replace(claim, floor=max(claim.floor, there.floor))
        expected = entry.revision


def released(won: Won) -> Generator[Operation, Entry | int | None, int]:
    """Delete the key of a name that this node owns; returns the revision of the deletion.

    It is 0 if the key has been deleted before, or has another owner, as after a loss of writes.
    """
    key, revision = key_of(won.claim.name), won.revision
    while True:
        try:
            deleted = yield Delete(key, revision)
        except (Conflict, Unavailable):
            pass
        else:
            assert isinstance(deleted, int)  # noqa: S101 - what a deletion is answered with
            return deleted
        entry = yield from _read(key)
        if entry is None or (there := NameClaim.of(entry)).nonce != won.claim.nonce:
            return 0
        if there.owner != won.claim.owner:
            return 0
        revision = entry.revision


def cleared(
    name: str, me: Peer, mine: Callable[[str], bool]
) -> Generator[Operation, Entry | int | None, int]:
    """Delete the key of a name that says that this node is the owner, unless it is.

    `mine` says so of a nonce, again each time, since this node may claim the name meanwhile.
    Returns the revision of the deletion, 0 if there was nothing to delete.
    """
    key = key_of(name)
    while True:
        entry = yield from _read(key)
        if entry is None:
            return 0
        there = _claim_in(entry, name)
        if there.owner != me or mine(there.nonce):
            return 0
        try:
            deleted = yield Delete(key, entry.revision)
        except (Conflict, Unavailable):
            continue
        assert isinstance(deleted, int)  # noqa: S101 - what a deletion is answered with
        return deleted


def _read(key: str) -> Generator[Operation, Entry | int | None, Entry | None]:
    """Read a key until the store answers."""
    while True:
        try:
            entry = yield Get(key)
        except Unavailable:
            continue
        assert entry is None or isinstance(entry, Entry)  # noqa: S101 - what a get is answered with
        return entry


def _claim_in(entry: Entry, name: str) -> NameClaim:
    claim = NameClaim.of(entry)
    if claim.name != name:
        raise NameTaken(f"the name {name!r:.200} has the same key as {claim.name!r:.200}")
    return claim
