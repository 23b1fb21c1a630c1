"""Registered names: each belongs to one living process, a process may have several.

The name that a process was spawned under is exclusive: a cancelled process no longer has it, but
holds it until it has ended, and the next process of that name, its successor, waits until then. A
process has at most one exclusive name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from wsrelay.errors import InvalidName, NameNotFound, NameTaken, TooMany
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
        self.observer: Callable[[str], None] | None = None
        """Called with each name that has been given or freed, or whose hold has ended."""
        self._fences: dict[str, int] = {}
        """The number of each name's owner."""
        self._first: dict[PID, tuple[str, int]] = {}
        """The name that each process was spawned under, with its number, until it has ended."""
        self._last = 0
        """The number that was given last."""
        self.numbering: Callable[[str], int | None] | None = None
        """Returns the number of a name's new owner, which must be greater than those before; with
        None it is counted here."""

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
        self._first[pid] = name, self._fences[name]

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
        # Last: whoever numbers the owners of this name must have heard of this one.
        self._fences[name] = self._number(name)
        self._changed(name)

    def _number(self, name: str) -> int:
        if self.numbering is not None and (number := self.numbering(name)) is not None:
            return number
        self._last += 1
        return self._last

    def get(self, name: str) -> PID | None:
        """Return the process with that name, or None."""
        return self._pids.get(name)

    def lookup(self, name: str) -> PID:
        """Return the process with that name. Raises `NameNotFound`."""
        if (pid := self._pids.get(name)) is None:
            raise NameNotFound(f"no process is registered as {name!r:.200}")
        return pid

    def exclusive(self, pid: PID) -> str | None:
        """Return the exclusive name that the process has or holds, or None."""
        return self._exclusive.get(pid)

    def fence(self, name: str) -> int:
        """Return the number of the name's owner, which grows with each; raises `NameNotFound`."""
        self.lookup(name)
        return self._fences[name]

    def own_fence(self, pid: PID, name: str | None) -> int:
        """Return a process's number as the owner of a name, None for that of its spawn.

        The latter stays after it has lost that name, until it has ended. Raises `InvalidName` if it
        was spawned under none, and `NameNotFound` for a name that it does not have.
        """
        first, number = self._first.get(pid, (None, 0))
        if name is None and first is None:
            raise InvalidName(f"{pid} was started under no name; say which of its names you mean")
        if name is not None and self._pids.get(name) == pid:
            return self._fences[name]
        if name not in {None, first}:
            raise NameNotFound(f"{pid} is not registered as {name!r:.200}")
        return number

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
            self._changed(name)
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
        self._first.pop(pid, None)
        name = self._exclusive.pop(pid, None)
        if name is None or self._holders.get(name) != pid:
            return None
        del self._holders[name]
        self._changed(name)
        return self._pids.get(name)

    def _free(self, name: str) -> None:
        self._ledger.remove(self._accounts.pop(name, None), name)
        self._freed.append((name, self._pids.pop(name)))
        del self._fences[name]
        self._changed(name)

    def _changed(self, name: str) -> None:
        if self.observer is not None:
            self.observer(name)

    def owners(self, name: str) -> set[PID]:
        """Return the processes that have or had the name, as far as they are remembered."""
        pid = self._pids.get(name)
        return {owner for freed, owner in self._freed if freed == name} | ({pid} if pid else set())
