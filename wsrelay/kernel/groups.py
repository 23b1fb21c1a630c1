"""Named groups of processes: their members, the members' metadata, and who watches them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from msgspec import Struct

from wsrelay.errors import TooMany
from wsrelay.values.pid import PID, nameable
from wsrelay.values.presence import Kind

from .ledger import Ledger
from .names import MOST

__all__ = ["Groups", "PresenceEffect"]


class PresenceEffect(Struct, frozen=True):
    """Tell a process of members of a group that it watches, each with its metadata.

    `watch` is the number that it gave the watch.
    """

    pid: PID
    group: str
    watch: int
    kind: Kind
    members: list[tuple[PID, bytes]]


class _Membership(Struct):
    meta: bytes
    """Empty if it has none."""
    account: str | None
    """The account that is charged for it."""
    text: str
    """What is charged besides the metadata: the group's name, or nothing if it joined by itself."""


class Groups:
    """Maps groups to members and watchers, and back; members stay in the order of their joining.

    A process may be in several groups, and may watch groups whether it is in them or not. A method
    that changes a group returns what its watchers are to be told, in order.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = Ledger() if ledger is None else ledger
        self._members: dict[str, dict[PID, _Membership]] = {}
        self._groups: dict[PID, set[str]] = {}
        self._watchers: dict[str, dict[PID, int]] = {}
        """Each watcher's number of its watch."""
        self._watched: dict[PID, set[str]] = {}
        self.observer: Callable[[Kind, str, PID, bytes], None] | None = None
        """Called with each change: its kind, the group, the member and its metadata."""

    def __iter__(self) -> Iterator[tuple[str, PID, bytes]]:
        """Yield all members of all groups, each with its metadata."""
        for group, members in self._members.items():
            for pid, member in members.items():
                yield group, pid, member.meta

    def __len__(self) -> int:
        return len(self._members)

    def join(
        self, group: str, pid: PID, asker: PID | None = None, meta: bytes = b""
    ) -> list[PresenceEffect]:
        """Add a process, or replace its metadata; without metadata a second time changes nothing.

        `asker` is the process that requests this, or None for the node. Raises `InvalidName`,
        `TooMany`, and then changes nothing.
        """
        nameable(group)
        joined = self._groups.get(pid, ())
        before = self._members[group][pid] if group in joined else None
        if before is None and len(joined) >= MOST:
            raise TooMany("group", MOST)
        if before is not None and meta in (b"", before.meta):
            return []
        account, text = self._ledger.account(asker, pid), group
        if account is None:
            # What a process joins by itself is bounded by number, its metadata is not.
            account, text = (asker.host if asker is not None and meta else None), ""
        if before is not None:
            self._discharge(before)
        try:
            whose = "of others" if text else "metadata"
            self._ledger.check(account, "group", text, len(meta), whose=whose)
        except TooMany:
            if before is not None:
                self._charge(before)
            raise
        now = _Membership(meta, account, text)
        self._charge(now)
        self._groups.setdefault(pid, set()).add(group)
        self._members.setdefault(group, {})[pid] = now
        return self._tell(group, "joined" if before is None else "changed", pid, meta)

    def leave(self, group: str, pid: PID) -> list[PresenceEffect]:
        """Remove a process; it is not an error if it is not in the group."""
        members = self._members.get(group)
        if members is None or pid not in members:
            return []
        gone = members.pop(pid)
        self._discharge(gone)
        if not members:
            del self._members[group]
        _remove(self._groups, pid, group)
        return self._tell(group, "left", pid, gone.meta)

    def members(self, group: str) -> list[PID]:
        """Return the members of the group."""
        return list(self._members.get(group, ()))

    def roster(self, group: str) -> list[tuple[PID, bytes]]:
        """Return the members of the group with their metadata."""
        return [(pid, member.meta) for pid, member in self._members.get(group, {}).items()]

    def of(self, pid: PID) -> Collection[str]:
        """Return the groups that the process is in."""
        return self._groups.get(pid, ())

    def meta(self, group: str, pid: PID) -> bytes | None:
        """Return a member's metadata, None if it is not a member."""
        member = self._members.get(group, {}).get(pid)
        return None if member is None else member.meta

    def of_node(self, node: str) -> list[PID]:
        """Return the members that are processes of a node."""
        start = f"{{{node}@"
        return [pid for pid in self._groups if pid.startswith(start)]

    def watch(self, group: str, watcher: PID, number: int) -> list[PresenceEffect]:
        """Tell a process of the members that there are, and from now on of every change.

        A second watch of the same group takes the place of the first. Raises `InvalidName`,
        `TooMany`.
        """
        nameable(group)
        watched = self._watched.get(watcher, ())
        if group not in watched and len(watched) >= MOST:
            raise TooMany("watch", MOST)
        self._watched.setdefault(watcher, set()).add(group)
        self._watchers.setdefault(group, {})[watcher] = number
        there = self.roster(group)
        return [PresenceEffect(watcher, group, number, "joined", there)] if there else []

    def unwatch(self, group: str, watcher: PID, number: int) -> None:
        """End that watch, unless another has taken its place."""
        if self._watchers.get(group, {}).get(watcher) == number:
            self._forget(group, watcher)

    def release(self, pid: PID) -> list[PresenceEffect]:
        """End the watches of a process, and remove it from all groups."""
        for group in list(self._watched.get(pid, ())):
            self._forget(group, pid)
        return [
            told for group in list(self._groups.get(pid, ())) for told in self.leave(group, pid)
        ]

    def _tell(self, group: str, kind: Kind, pid: PID, meta: bytes) -> list[PresenceEffect]:
        if self.observer is not None:
            self.observer(kind, group, pid, meta)
        return [
            PresenceEffect(watcher, group, number, kind, [(pid, meta)])
            for watcher, number in self._watchers.get(group, {}).items()
        ]

    def _forget(self, group: str, watcher: PID) -> None:
        watchers = self._watchers[group]
        del watchers[watcher]
        if not watchers:
            del self._watchers[group]
        _remove(self._watched, watcher, group)

    def _charge(self, one: _Membership) -> None:
        self._ledger.add(one.account, one.text, len(one.meta))

    def _discharge(self, one: _Membership) -> None:
        self._ledger.remove(one.account, one.text, len(one.meta))


def _remove(groups: dict[PID, set[str]], pid: PID, group: str) -> None:
    groups[pid].discard(group)
    if not groups[pid]:
        del groups[pid]
