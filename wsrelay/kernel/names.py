"""Registered names: each belongs to one living process, a process may have several."""

from __future__ import annotations

from collections import deque
from typing import Final

from wsrelay.errors import NameNotFound, NameTaken, TooMany
from wsrelay.values.pid import PID, nameable

from .ledger import Ledger

__all__ = ["MOST", "Names"]

MOST: Final = 10_000
"""Names, groups, monitors or links that one process may have: what it makes the node keep."""

_REMEMBERED: Final = 1_000
"""Names that were freed whose owners are still known: of a process that has just ended its log is
asked for by name."""


class Names:
    """Name to PID and back."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = Ledger() if ledger is None else ledger
        self._accounts: dict[str, str] = {}
        """Those names that others than the bearer have given, with the account."""
        self._pids: dict[str, PID] = {}
        self._names: dict[PID, set[str]] = {}
        self._freed: deque[tuple[str, PID]] = deque(maxlen=_REMEMBERED)

    def __len__(self) -> int:
        return len(self._pids)

    def register(self, name: str, pid: PID, asker: PID | None = None) -> None:
        """Give the name to the process; again is no change. Raises as below.

        `asker` is the process that asks for it. `NameTaken`, `InvalidName`, and `TooMany`; then
        nothing has changed.
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
        """Return the process of that name, or None."""
        return self._pids.get(name)

    def lookup(self, name: str) -> PID:
        """Return the process of that name. Raises `NameNotFound`."""
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
        """Return the processes that have or had the name, as far back as is remembered."""
        pid = self._pids.get(name)
        return {owner for freed, owner in self._freed if freed == name} | ({pid} if pid else set())
