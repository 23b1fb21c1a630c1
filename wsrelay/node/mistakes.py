"""What processes do wrong and get no exception for: the log is to tell it, and not every time."""

from __future__ import annotations

import re
from typing import Final

from wsrelay.pid import PID

__all__ = ["Mistakes"]

_MOST: Final = 20
"""Kinds told of one process: each may quote what the process has made up."""

_VALUE: Final = re.compile(r"\{[^}]*\}|'[^']*'|[0-9]+")


class Mistakes:
    """Knows what was told of which process.

    A loop makes a mistake at every message, and a handler that does not look for `ws.error` would
    never know of it.
    """

    def __init__(self) -> None:
        self._told: dict[PID, set[str]] = {}

    def first(self, who: PID, kind: str) -> bool:
        """Whether it is the first of its kind; the values that a text quotes make no other kind."""
        told = self._told.setdefault(who, set())
        kind = _VALUE.sub("", kind)
        if kind in told or len(told) >= _MOST:
            return False
        told.add(kind)
        return True

    def forget(self, who: PID) -> None:
        """Let go of a process that has ended."""
        self._told.pop(who, None)
