"""What processes do wrong and get no exception for: the log is to tell it, and not every time."""

from __future__ import annotations

import re
from typing import Final

from wsrelay.values.bucket import Bucket
from wsrelay.values.pid import PID

__all__ = ["MistakeLog"]

_MOST: Final = 20
"""Kinds told of one process: each may quote what the process has made up."""

_RATE: Final = 1.0
_BURST: Final = 10
"""Lines a second, and at once, of what is told each time."""

_LONGEST: Final = 500
"""Characters of a kind that are looked at."""

_VALUE: Final = re.compile(r"\{[^}]*\}|'[^']*'|[0-9]+")


class MistakeLog:
    """Knows what was told of which process.

    A loop makes a mistake at every message, and a handler that does not look for `ws.error` would
    never know of it.
    """

    def __init__(self) -> None:
        self._told: dict[PID, set[str]] = {}
        self._often: dict[str, _Often] = {}

    def first(self, who: PID, kind: str) -> bool:
        """Whether it is the first of its kind; the values that a text quotes make no other kind."""
        told = self._told.setdefault(who, set())
        kind = _VALUE.sub("", kind[:_LONGEST])
        if kind in told or len(told) >= _MOST:
            return False
        told.add(kind)
        return True

    def again(self, who: str, now: float) -> int | None:
        """Return how many of the same were not told since the last that was; None: nor is this one.

        For what is told each time, as long as it is not too often: one a second, and some at once.
        `who` is a process, or what they have in common.
        """
        if (often := self._often.get(who)) is None:
            often = self._often[who] = _Often(now)
        if often.bucket.take(now):
            often.untold += 1
            return None
        untold, often.untold = often.untold, 0
        return untold

    def forget(self, who: PID) -> None:
        """Let go of a process that has ended."""
        self._told.pop(who, None)
        self._often.pop(who, None)


class _Often:
    def __init__(self, now: float) -> None:
        self.bucket = Bucket(_RATE, _BURST, now)
        self.untold = 0
