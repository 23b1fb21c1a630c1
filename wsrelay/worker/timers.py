"""The timers that this process has pending at its node, as far as it can know."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from wsrelay.errors import TooMany
from wsrelay.values.sizes import show
from wsrelay.values.timer import MOST, MOST_BYTES

__all__ = ["PendingTimers"]

_FEW: Final = 16


class PendingTimers:
    """Counts them, so that the call that is one too many raises and no call waits for an answer.

    Worker and node go by the same clock, and each timer says when it is due. So one that is due
    here is not pending there, unless the node is behind with its work, and then it catches up
    before it counts. One that another process has cancelled counts here until it is due.
    """

    def __init__(self, now: Callable[[], int] = time.monotonic_ns) -> None:
        self._now = now
        self._lock = threading.RLock()  # a signal handler may set a timer while its thread has it
        self._pending: dict[str, tuple[int, int]] = {}
        """When each is due, and its size."""
        self._bytes = 0
        self._look_at = _FEW
        """At how many of them those that are due are forgotten."""

    def add(self, timer: str, due: int, size: int) -> None:
        """Count a timer; raises `TooMany`."""
        with self._lock:
            count = len(self._pending)
            if count >= min(self._look_at, MOST) or self._bytes + size > MOST_BYTES:
                self._forget_due()
            if len(self._pending) >= MOST:
                raise TooMany("timer", MOST)
            if self._bytes + size > MOST_BYTES:
                raise TooMany("timers (their messages)", show(MOST_BYTES))
            self._pending[timer] = due, size
            self._bytes += size

    def remove(self, timer: str) -> None:
        """Count it no more: it was cancelled, or never set."""
        with self._lock:
            _, size = self._pending.pop(timer, (0, 0))
            self._bytes -= size

    def _forget_due(self) -> None:
        now = self._now()
        for timer in [timer for timer, (due, _) in self._pending.items() if due <= now]:
            self.remove(timer)
        self._look_at = max(_FEW, 2 * len(self._pending))
