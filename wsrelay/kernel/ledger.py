"""What the processes of a host give to others, and the node keeps: names and groups.

A bearer's own bound does not bound who asks: a process can name each of thousands of connections.
The account is the host's, not the process's: what is left of one that has ended is still there.
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
"""Bytes of one beside its text: it stands at the name and at its bearer."""


class Ledger(dict[str, int]):
    """Bytes by host; one that has given nothing has no account."""

    def account(self, asker: PID | None, bearer: PID) -> str | None:
        """Return whose account it is that `asker` names `bearer`; None: nobody's.

        The node itself (None) has no bound, and what a process gives itself has another one.
        """
        return None if asker is None or asker == bearer else asker.host

    def check(self, account: str | None, what: str, text: str) -> None:
        """Raise `TooMany` if there is no room for one more."""
        if account is not None and self.get(account, 0) + _cost(text) > MOST_FOR_OTHERS:
            raise TooMany(f"{what} (of others, host {account})", show(MOST_FOR_OTHERS))

    def add(self, account: str | None, text: str) -> None:
        """Note one more."""
        if account is not None:
            self[account] = self.get(account, 0) + _cost(text)

    def remove(self, account: str | None, text: str) -> None:
        """Note that one is gone."""
        if account is not None:
            left = self.pop(account) - _cost(text)
            if left:
                self[account] = left


def _cost(text: str) -> int:
    return _ENTRY + len(text.encode())
