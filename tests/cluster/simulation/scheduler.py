"""Virtual time: one heap of everything that will happen, in an order that the seed decides."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Scheduler"]

_START: Final = 1000.0
"""The time at the beginning: a monotonic clock has no meaning at 0, and nobody should need one."""

_SHOWN: Final = 2000
"""Lines of the trace that are kept; all of them count for its digest."""

_TICK: Final = 0.0001
"""Seconds that pass at most between two looks at the clock in one turn of a loop."""


class Scheduler:
    """Runs what is due, one thing at a time; what is due at the same time in a random order.

    Whoever must keep an order (a connection, a pipe) uses `after`, with the time of what it has
    sent before.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - the point is that it can be repeated
        self.now = _START
        self.spent = 0.0
        """Seconds that have passed in the turn that is running, by its looks at the clock."""
        self._stopped = False
        self.count = 0
        """What has run so far."""
        self.trace: deque[str] = deque(maxlen=_SHOWN)
        self._digest = hashlib.blake2b(digest_size=8)
        self._heap: list[tuple[float, float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        """Call at that time, or now if it is over."""
        when = max(when, self.now)
        entry = when, self.random.random(), next(self._numbers), call, args
        heapq.heappush(self._heap, entry)

    def later(self, seconds: float, call: Callable[..., None], *args: Any) -> None:
        """Call after so many seconds."""
        self.at(self.now + seconds, call, *args)

    def after(self, last: float, delay: float, call: Callable[..., None], *args: Any) -> float:
        """Call after a delay, but not before what was sent last; returns the time of that."""
        when = max(self.now + delay, last + 1e-9)
        self.at(when, call, *args)
        return when

    def run(self, until: float) -> None:
        """Run what is due up to that time, which it is then, unless it is stopped."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until and not self._stopped:
            self.now, _, _, call, args = pop(heap)
            self.count += 1
            call(*args)
        if not self._stopped:
            self.now = until

    def stop(self) -> None:
        """Run nothing more."""
        self._stopped = True

    def clock(self) -> float:
        """Return the time as code sees it: it goes on with every look."""
        self.spent += self.random.random() * _TICK
        return self.now + self.spent

    def note(self, line: str) -> None:
        """Write a line of the trace."""
        line = f"{self.now - _START:10.6f} {line}"
        self.trace.append(line)
        self._digest.update(line.encode("utf-8", "replace"))

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.now - _START

    @property
    def digest(self) -> str:
        """What the whole trace comes to: the same for the same seed."""
        return self._digest.hexdigest()
