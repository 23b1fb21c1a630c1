"""Mistakes for which a process gets no exception: the log reports them, but not every time."""

from __future__ import annotations

import re
from typing import Final

from wsrelay.values.bucket import Bucket
from wsrelay.values.pid import PID

__all__ = ["MistakeLog"]

_MOST: Final = 20
"""Kinds logged for one process: each may quote what the process has made up."""

_RATE: Final = 1.0
_BURST: Final = 10
"""Lines a second, and at once, of a mistake that is logged each time."""

_LONGEST: Final = 500
"""Characters of a kind that are looked at."""

_VALUE: Final = re.compile(r"\{[^}]*\}|'[^']*'|[0-9]+")


class MistakeLog:
    """Remembers which mistakes of which process have been logged.

    A loop makes its mistake at every message, and the author of a handler that ignores `ws.error`
    would not know of it without the log.
    """

    def __init__(self) -> None:
        self._told: dict[PID, set[str]] = {}
        self._often: dict[str, _Often] = {}

    def first(self, who: PID, kind: str) -> bool:
        """Whether it is the first of its kind; quoted values and numbers make no difference."""
        told = self._told.setdefault(who, set())
        kind = _VALUE.sub("", kind[:_LONGEST])
        if kind in told or len(told) >= _MOST:
            return False
        told.add(kind)
        return True

    def again(self, who: str, now: float) -> int | None:
        """Return how many were skipped since the last one was logged; None: skip this one too.

        For mistakes that are logged each time unless they come too often: one a second, and ten at
        once. `who` is a process, or what several processes have in common.
        """
        if (often := self._often.get(who)) is None:
            often = self._often[who] = _Often(now)
        if often.bucket.take(now):
            often.untold += 1
            return None
        untold, often.untold = often.untold, 0
        return untold

    def forget(self, who: PID) -> None:
        """Forget a process that has ended."""
        self._told.pop(who, None)
        self._often.pop(who, None)


class _Often:
    def __init__(self, now: float) -> None:
        self.bucket = Bucket(_RATE, _BURST, now)
        self.untold = 0
