"""What the processes of a host make the node keep: names and memberships of others, metadata.

The bound of each owner does not bound the asker: a process can name each of thousands of
connections. The account is the host's and not the process's, because the names and memberships that
a process gave remain after it has ended.
"""

from __future__ import annotations

from typing import Final

from wsrelay.errors import TooMany
from wsrelay.values.pid import PID
from wsrelay.values.sizes import ITEM, show

__all__ = ["MOST_FOR_OTHERS", "Ledger"]

MOST_FOR_OTHERS: Final = 128 * 1024 * 1024
"""Bytes: 400,000 names or memberships of ordinary length, 40 for each of 10,000 connections."""

_ENTRY: Final = 2 * ITEM
"""Bytes of an entry besides its text: it is stored under the name and under the owner."""


class Ledger(dict[str, int]):
    """Bytes by host; a host that has given nothing has no account."""

    def account(self, asker: PID | None, owner: PID) -> str | None:
        """Return the account to charge when `asker` names `owner`, or None for no account.

        The node itself (None) has no bound, and what a process gives itself is bounded elsewhere.
        """
        return None if asker is None or asker == owner else asker.host

    def check(
        self, account: str | None, what: str, text: str, more: int = 0, *, whose: str = "of others"
    ) -> None:
        """Raise `TooMany` if the account has no room for one more entry, and `more` bytes of it."""
        if account is not None and self.get(account, 0) + _cost(text) + more > MOST_FOR_OTHERS:
            raise TooMany(f"{what} ({whose}, host {account})", show(MOST_FOR_OTHERS))

    def add(self, account: str | None, text: str, more: int = 0) -> None:
        """Charge one entry to the account."""
        if account is not None:
            self[account] = self.get(account, 0) + _cost(text) + more

    def remove(self, account: str | None, text: str, more: int = 0) -> None:
        """Credit one entry that is gone."""
        if account is not None:
            left = self.pop(account) - _cost(text) - more
            if left:
                self[account] = left


def _cost(text: str) -> int:
    return _ENTRY + len(text.encode())
