"""Messages that are to be sent later: kept here until they are due, whoever has ended meanwhile."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Struct

from wsrelay import wire
from wsrelay.errors import TooMany, WireError
from wsrelay.values.pid import PID
from wsrelay.values.rights import Rights
from wsrelay.values.sizes import show
from wsrelay.values.timer import MOST, MOST_BYTES

__all__ = ["Later", "Timers"]

_MOST_OF_A_HOST: Final = 4 * MOST_BYTES
"""Bytes that the timers of all processes of a host may have, those of processes that have ended
among them."""

_TURN: Final = 0.0005
"""Seconds after which what is due waits for the event loop's next iteration."""

_LONGEST: Final = 86_400.0
"""Seconds for which the event loop is asked to wait at once."""

_DONE: Final = object()

_NANO: Final = 1_000_000_000


class Later(Struct, eq=False):
    """A message and its sender, with the `rights` that the sender had if its host is walled in."""

    pid: PID
    message: wire.SendFrame
    size: int
    rights: Rights | None = None
    is_pending: bool = True


class Timers:
    """The pending timers of a node.

    `send` is called with what is due, in order, in the event loop; it returns an iterator if that
    is work in portions. Like the work of workers (`host/pipe.py`), it is cut into turns, so that
    others are heard while thousands are due at once. Times are nanoseconds of `now`.
    """

    def __init__(
        self,
        send: Callable[[Later], Iterator[None] | None],
        now: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._send = send
        self._now = now
        self._pending: dict[str, Later] = {}
        self._heap: list[tuple[int, int, Later, str]] = []
        """By the time at which they are due; cancelled ones stay until there are too many."""
        self._numbers = itertools.count()
        self._counts: Counter[PID] = Counter()
        self._sizes: Counter[str] = Counter()
        """Bytes by process and by host."""
        self._work: Iterator[None] | None = None
        """The rest of the work for what was sent last."""
        self._alarm: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._pending)

    def request(
        self, timer: str, due: int, later: Later, refuse: Callable[[TooMany], None]
    ) -> Iterator[None] | None:
        """Do what `add` does within the bounds of a process and its host, or `refuse` it.

        To the process, what is due is not pending (`worker/timers.py`). So if there is no room and
        this node is behind with sending, that is done first, as work in portions.
        """
        if self._too_many(later) is None:
            self.add(timer, due, later)
            return None
        return self._request_behind_those_due(timer, due, later, refuse)

    def _request_behind_those_due(
        self, timer: str, due: int, later: Later, refuse: Callable[[TooMany], None]
    ) -> Iterator[None]:
        while (problem := self._too_many(later)) is not None:
            if not self.step():
                refuse(problem)
                return
            yield
        self.add(timer, due, later)

    def _too_many(self, later: Later) -> TooMany | None:
        pid, size = later.pid, later.size
        if self._counts[pid] >= MOST:
            return TooMany("timer", MOST)
        if self._sizes[pid] + size > MOST_BYTES:
            return TooMany("timers (their messages)", show(MOST_BYTES))
        if self._sizes[pid.host] + size > _MOST_OF_A_HOST:
            return TooMany(f"timers (of host {pid.host})", show(_MOST_OF_A_HOST))
        return None

    def add(self, timer: str, due: int, later: Later) -> None:
        """Send a message when it is due; raises `WireError` if that timer is pending already."""
        if timer in self._pending:
            raise WireError(f"the timer {timer} is pending")
        self._pending[timer] = later
        self._charge(later, 1)
        entry = due, next(self._numbers), later, timer
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._arm()

    def cancel(self, timer: str) -> None:
        """Do not send its message; without effect if there is no such timer (any more)."""
        if (later := self._pending.pop(timer, None)) is None:
            return
        later.is_pending = False
        later.message = _NOTHING
        self._charge(later, -1)
        if len(self._heap) > 2 * len(self._pending) + 100:
            self._heap = [entry for entry in self._heap if entry[2].is_pending]
            heapq.heapify(self._heap)

    def of(self, pid: PID) -> tuple[int, float | None]:
        """Return how many of a process are pending, and in how many seconds the first is due."""
        if not (count := self._counts.get(pid, 0)):
            return 0, None
        dues = (due for due, _, later, _ in self._heap if later.pid == pid and later.is_pending)
        return count, max(min(dues) - self._now(), 0) / _NANO

    def step(self) -> bool:
        """Do a part of what is due; returns whether there was anything to do."""
        if self._work is not None:
            if next(self._work, _DONE) is _DONE:
                self._work = None
            return True
        heap = self._heap
        while heap and not heap[0][2].is_pending:
            heapq.heappop(heap)
        if not heap or heap[0][0] > self._now():
            return False
        _, _, later, timer = heapq.heappop(heap)
        del self._pending[timer]
        self._charge(later, -1)
        self._work = self._send(later)
        return True

    def close(self) -> None:
        """Forget all of them."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._work = None
        self._pending.clear()
        self._heap.clear()
        self._counts.clear()
        self._sizes.clear()

    def _charge(self, later: Later, sign: int) -> None:
        pid = later.pid
        self._counts[pid] += sign
        for account in (pid, pid.host):
            self._sizes[account] += sign * later.size
            if not self._sizes[account]:
                del self._sizes[account]
        if not self._counts[pid]:
            del self._counts[pid]

    def _run(self) -> None:
        end = time.perf_counter() + _TURN
        try:
            while self.step() and time.perf_counter() < end:
                pass
        finally:
            self._arm()

    def _arm(self) -> None:
        """Come back when the next one is due; in the loop's next iteration if it is now."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        loop = asyncio.get_running_loop()
        wait = 0.0
        if self._work is None:
            if not self._heap:
                return
            wait = (self._heap[0][0] - self._now()) / _NANO
        if wait > 0:
            self._alarm = loop.call_later(min(wait, _LONGEST), self._run)
        else:
            self._alarm = loop.call_soon(self._run)


_NOTHING: Final = wire.SendFrame([], "", b"")
