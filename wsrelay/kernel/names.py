"""Registered names: each belongs to one living process, a process may have several.

The name that a process was spawned under is exclusive: a cancelled process no longer has it, but
holds it until it has ended, and the next process of that name, its successor, waits until then. A
process has at most one exclusive name.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from wsrelay.errors import NameNotFound, NameTaken, TooMany
from wsrelay.values.pid import PID, nameable

from .ledger import Ledger

__all__ = ["MOST", "Names"]

MOST: Final = 10_000
"""Names, groups, monitors or links that one process may have, since the node keeps them."""

_REMEMBERED: Final = 1_000
"""Freed names whose owners are remembered: people ask by name for the log of a process that has
just ended."""


class Names:
    """Maps names to PIDs and back.

    Whatever ends a hold makes a process that waits due to start; see `awaited`.
    """

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = Ledger() if ledger is None else ledger
        self._accounts: dict[str, str] = {}
        """Names that were given by somebody other than the owner, with the account charged."""
        self._pids: dict[str, PID] = {}
        self._names: dict[PID, set[str]] = {}
        self._exclusive: dict[PID, str] = {}
        """The exclusive name of each process that has or holds one."""
        self._holders: dict[str, PID] = {}
        """The cancelled process that holds each of these exclusive names."""
        self._freed: deque[tuple[str, PID]] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        return len(self._pids)

    def register(self, name: str, pid: PID, asker: PID | None = None) -> None:
        """Give the name to the process; a second time changes nothing.

        `asker` is the process that requests this, or None for the node. Raises `NameTaken`,
        `InvalidName` or `TooMany`, and then changes nothing.
        """
        nameable(name)
        if self._pids.get(name) == pid:
            return
        if name not in self._pids and (holder := self._holders.get(name)) is not None:
            raise NameTaken(
                f"the name {name!r} belongs to {holder}, which has been cancelled, until it has "
                "ended; get_or_spawn starts its successor then"
            )
        self._give(name, pid, asker)

    def claim(self, name: str, pid: PID) -> None:
        """Give a new process its exclusive name, even if a cancelled one holds that.

        Raises as `register` does.
        """
        nameable(name)
        self._give(name, pid, None)
        self._exclusive[pid] = name

    def _give(self, name: str, pid: PID, asker: PID | None) -> None:
        if (owner := self._pids.get(name)) is not None:
            raise NameTaken(f"the name {name!r} belongs to {owner}")
        if len(self._names.get(pid, ())) >= MOST:
            raise TooMany("name", MOST)
        account = self._ledger.account(asker, pid)
        self._ledger.check(account, "name", name)
        self._ledger.add(account, name)
        if account is not None:
            self._accounts[name] = account
        self._pids[name] = pid
        self._names.setdefault(pid, set()).add(name)

    def get(self, name: str) -> PID | None:
        """Return the process with that name, or None."""
        return self._pids.get(name)

    def lookup(self, name: str) -> PID:
        """Return the process with that name. Raises `NameNotFound`."""
        if (pid := self._pids.get(name)) is None:
            raise NameNotFound(f"no process is registered as {name!r:.200}")
        return pid

    def holder(self, name: str | None) -> PID | None:
        """Return the cancelled process that holds the name, or None."""
        return None if name is None else self._holders.get(name)

    def awaited(self, pid: PID) -> PID | None:
        """Return the process that must end before this one may start, or None."""
        holder = self.holder(self._exclusive.get(pid))
        return None if holder == pid else holder

    def unregister(self, name: str, asker: PID | None = None) -> PID | None:
        """Free the name, or end its hold if the process that holds it is the one that asks.

        Returns the process that had the name, or that has it now, if any. Raises `NameNotFound`.
        """
        if asker is not None and self._holders.get(name) == asker:
            del self._holders[name], self._exclusive[asker]
            return self._pids.get(name)
        pid = self.lookup(name)
        if self._exclusive.get(pid) == name:
            del self._exclusive[pid]
        self._names[pid].discard(name)
        self._free(name)
        return pid

    def of(self, pid: PID) -> frozenset[str]:
        """Return the names of the process."""
        return frozenset(self._names.get(pid, ()))

    def cancelled(self, pid: PID) -> None:
        """Free all names of the process, which holds its exclusive one until it is released."""
        if (name := self._exclusive.get(pid)) is not None:
            self._holders[name] = pid
        for freed in self._names.pop(pid, ()):
            self._free(freed)

    def release(self, pid: PID) -> PID | None:
        """Free all names of a process that has ended; returns the process that waited for it."""
        for freed in self._names.pop(pid, ()):
            self._free(freed)
        name = self._exclusive.pop(pid, None)
        if name is None or self._holders.get(name) != pid:
            return None
        del self._holders[name]
        return self._pids.get(name)

    def _free(self, name: str) -> None:
        self._ledger.remove(self._accounts.pop(name, None), name)
        self._freed.append((name, self._pids.pop(name)))

    def owners(self, name: str) -> set[PID]:
        """Return the processes that have or had the name, as far as they are remembered."""
        pid = self._pids.get(name)
        return {owner for freed, owner in self._freed if freed == name} | ({pid} if pid else set())
