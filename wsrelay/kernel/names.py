"""Registered names: each belongs to one living process, a process may have several."""

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
    """Maps names to PIDs and back."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = Ledger() if ledger is None else ledger
        self._accounts: dict[str, str] = {}
        """Names that were given by somebody other than the owner, with the account charged."""
        self._pids: dict[str, PID] = {}
        self._names: dict[PID, set[str]] = {}
        self._freed: deque[tuple[str, PID]] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        return len(self._pids)

    def register(self, name: str, pid: PID, asker: PID | None = None) -> None:
        """Give the name to the process; a second time changes nothing.

        `asker` is the process that requests this, or None for the node. Raises `NameTaken`,
        `InvalidName` or `TooMany`, and then changes nothing.
        """
        nameable(name)
        if (owner := self._pids.get(name)) is not None:
            if owner != pid:
                raise NameTaken(f"the name {name!r} belongs to {owner}")
            return
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

    def unregister(self, name: str) -> None:
        """Free the name. Raises `NameNotFound`."""
        pid = self.lookup(name)
        self._names[pid].discard(name)
        self._free(name)

    def of(self, pid: PID) -> frozenset[str]:
        """Return the names of the process."""
        return frozenset(self._names.get(pid, ()))

    def release(self, pid: PID) -> None:
        """Free all names of the process."""
        for name in self._names.pop(pid, ()):
            self._free(name)

    def _free(self, name: str) -> None:
        self._ledger.remove(self._accounts.pop(name, None), name)
        self._freed.append((name, self._pids.pop(name)))

    def owners(self, name: str) -> set[PID]:
        """Return the processes that have or had the name, as far as they are remembered."""
        pid = self._pids.get(name)
        return {owner for freed, owner in self._freed if freed == name} | ({pid} if pid else set())
