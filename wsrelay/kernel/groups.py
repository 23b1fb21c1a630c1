"""Named groups of processes; a process may be in several."""

from __future__ import annotations

from wsrelay.errors import TooMany
from wsrelay.values.pid import PID, nameable

from .ledger import Ledger
from .names import MOST

__all__ = ["Groups"]


class Groups:
    """Group to members and back; members keep the order in which they joined."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = Ledger() if ledger is None else ledger
        self._members: dict[str, dict[PID, str | None]] = {}
        """By group and member: whose account it is that it is one."""
        self._groups: dict[PID, set[str]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def join(self, group: str, pid: PID, asker: PID | None = None) -> None:
        """Add a process; again is no change. Raises `InvalidName`, `TooMany`.

        `asker` is the process that asks for it.
        """
        nameable(group)
        there = self._groups.get(pid, ())
        if group in there:
            return
        if len(there) >= MOST:
            raise TooMany("group", MOST)
        account = self._ledger.account(asker, pid)
        self._ledger.check(account, "group", group)
        self._ledger.add(account, group)
        self._groups.setdefault(pid, set()).add(group)
        self._members.setdefault(group, {})[pid] = account

    def leave(self, group: str, pid: PID) -> None:
        """Remove a process; one that is not in the group is no error."""
        if (members := self._members.get(group)) is not None and pid in members:
            self._ledger.remove(members.pop(pid), group)
            if not members:
                del self._members[group]
            groups = self._groups[pid]
            groups.discard(group)
            if not groups:
                del self._groups[pid]

    def members(self, group: str) -> list[PID]:
        """Return the members."""
        return list(self._members.get(group, ()))

    def release(self, pid: PID) -> None:
        """Remove a process from all groups."""
        for group in list(self._groups.get(pid, ())):
            self.leave(group, pid)
