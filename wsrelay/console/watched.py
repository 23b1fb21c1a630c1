"""What the console knows of one process, and of one connection, from one look to the next."""

from __future__ import annotations

from collections import deque
from typing import Any, Final

from wsrelay.control.usage import UsageSample

__all__ = ["BUSY", "WatchedConnection", "WatchedProcess", "short_target"]

BUSY: Final = 90.0
"""Percent of a core from which on a process counts as busy; also one that never waits does."""

_STEP: Final = 5.0
_STEPS: Final = 13
"""Seconds between two marks of a process's memory, and how many are kept: a minute of them."""

_LOADING: Final = 3.0
"""Seconds in which a process takes the memory that it begins with."""


class WatchedProcess:
    """One process. Times are those of the watch's monotonic clock, `started` is Unix time."""

    def __init__(self, node: str, info: dict[str, Any], now: float, clock: float) -> None:
        self.node = node
        self.pid: str = info["pid"]
        self.started = round(clock - info["uptime"])
        self.usage = UsageSample()
        self.busy_since: float | None = None
        self.waiting_since: float | None = None
        self.rate: float | None = None
        """Messages a second, received and sent; None: not known."""
        self._marks: deque[tuple[float, int]] = deque(maxlen=_STEPS)
        self._loaded_at = now + _LOADING - info["uptime"]
        self._counted: tuple[float, int] | None = None
        self._first_seen = now
        self.update(info, now)

    def update(self, info: dict[str, Any], now: float) -> None:
        """Take what its node says of it."""
        self.info = info
        # Older nodes do not count messages; what has left for the process is no longer there.
        if not info.get("waiting", info["mailbox"]):
            self.waiting_since = None
        elif self.waiting_since is None:
            self.waiting_since = now
        received, sent = info.get("received"), info.get("sent")
        if received is None or sent is None:
            return
        count, before = received + sent, self._counted
        if before is not None and now > before[0]:
            self.rate = max(count - before[1], 0) / (now - before[0])
        self._counted = now, count

    def use(self, usage: UsageSample, now: float) -> None:
        """Take what the operating system says of it."""
        self.usage = usage
        if usage.cpu is None or (usage.cpu < BUSY and usage.waits):
            self.busy_since = None
        elif self.busy_since is None:
            self.busy_since = now
        if usage.memory is None or now < self._loaded_at:
            return
        if not self._marks or now - self._marks[-1][0] >= _STEP:
            self._marks.append((now, usage.memory))

    def growth(self, now: float) -> tuple[int, float] | None:
        """Return by how many bytes its memory grew lately, and in how many seconds.

        That is since it was least within the last minute. None: not known.
        """
        if self.usage.memory is None or not self._marks:
            return None
        then, least = min(self._marks, key=lambda mark: (mark[1], -mark[0]))
        return self.usage.memory - least, now - then

    def takes_nothing(self, now: float) -> float:
        """Return for how long messages have waited and it has taken none, in seconds."""
        if self.waiting_since is None:
            return 0.0
        waited = now - self.waiting_since
        if "waiting" not in self.info:
            return waited
        idle = self.info.get("idle")  # None: it has never taken one
        return waited if idle is None else float(min(waited, idle))

    def took_last(self, now: float) -> float:
        """Return what is told of that: when it took one, unless the wait was seen to begin."""
        idle = self.info.get("idle")
        if idle is None or self.waiting_since != self._first_seen:
            return self.takes_nothing(now)
        return float(idle)

    @property
    def name(self) -> str:
        """What people call it: its first name, else its target."""
        names = self.info["names"]
        return str(names[0]) if names else short_target(self.info["target"])


class WatchedConnection:
    """One connection; `slow_since` is since when bytes wait for its client."""

    def __init__(self, node: str, info: dict[str, Any], now: float, clock: float) -> None:
        self.node = node
        self.pid: str = info["pid"]
        self.started = round(clock - info["uptime"])
        self.slow_since: float | None = None
        self.update(info, now)

    def update(self, info: dict[str, Any], now: float) -> None:
        """Take what its node says of it."""
        self.info = info
        if info["outbox"] == 0:
            self.slow_since = None
        elif self.slow_since is None:
            self.slow_since = now

    @property
    def client(self) -> str:
        """Who it is: the user, else the address."""
        if user := self.info.get("user"):
            return str(user)
        address = self.info.get("client")
        return "a client" if address is None else f"{address[0]}:{address[1]}"


def short_target(target: str) -> str:
    """Return a target without the folders of its script."""
    return target.rpartition("/")[2]
