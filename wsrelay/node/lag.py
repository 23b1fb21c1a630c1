"""How late the event loop is: sampled, and only while somebody looks at it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from wsrelay.values.numbers import Distribution

__all__ = ["LagSampler"]

_EVERY: Final = 0.1
"""Seconds between two samples. One takes 2 µs: 0.002 % of a core."""

_LOOKED_AT: Final = 300.0
"""Seconds for which it goes on after somebody has looked: Prometheus looks every minute by default,
and may miss some."""


class LagSampler:
    """Adds to a distribution by how much timers are late, in seconds."""

    def __init__(self, lags: Distribution) -> None:
        self._lags = lags
        self._next: asyncio.TimerHandle | None = None
        self._due = self._until = 0.0

    def look(self) -> None:
        """Sample for a while from now on, in the running event loop."""
        now = time.monotonic()
        self._until = now + _LOOKED_AT
        if self._next is None:
            self._begin(asyncio.get_running_loop(), now)

    def stop(self) -> None:
        """Sample no more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _begin(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        # Not `loop.time()`: that of uvloop stands still during an iteration, and is rounded.
        self._due = now + _EVERY
        self._next = loop.call_later(_EVERY, self._sample, loop)

    def _sample(self, loop: asyncio.AbstractEventLoop) -> None:
        self._next = None
        now = time.monotonic()
        self._lags.add(max(0.0, now - self._due))
        if now < self._until:
            self._begin(loop, now)
