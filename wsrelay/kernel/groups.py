"""Named groups of processes; a process may be in several."""

from __future__ import annotations

from wsrelay.errors import TooMany
from wsrelay.values.pid import PID, nameable

from .ledger import Ledger
from .names import MOST

__all__ = ["Groups"]


class Groups:
    """Maps groups to members and back; members stay in the order in which they joined."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = Ledger() if ledger is None else ledger
        self._members: dict[str, dict[PID, str | None]] = {}
        """The account that is charged for each membership, by group and member."""
        self._groups: dict[PID, set[str]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def join(self, group: str, pid: PID, asker: PID | None = None) -> None:
        """Add a process; a second time changes nothing. Raises `InvalidName`, `TooMany`.

        `asker` is the process that requests this, or None for the node.
        """
        nameable(group)
        joined = self._groups.get(pid, ())
        if group in joined:
            return
        if len(joined) >= MOST:
            raise TooMany("group", MOST)
        account = self._ledger.account(asker, pid)
        self._ledger.check(account, "group", group)
        self._ledger.add(account, group)
        self._groups.setdefault(pid, set()).add(group)
        self._members.setdefault(group, {})[pid] = account

    def leave(self, group: str, pid: PID) -> None:
        """Remove a process; it is not an error if it is not in the group."""
        if (members := self._members.get(group)) is not None and pid in members:
            self._ledger.remove(members.pop(pid), group)
            if not members:
                del self._members[group]
            groups = self._groups[pid]
            groups.discard(group)
            if not groups:
                del self._groups[pid]

    def members(self, group: str) -> list[PID]:
        """Return the members of the group."""
        return list(self._members.get(group, ()))

    def release(self, pid: PID) -> None:
        """Remove a process from all groups."""
        for group in list(self._groups.get(pid, ())):
            self.leave(group, pid)
