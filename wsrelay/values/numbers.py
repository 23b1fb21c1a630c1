"""What a node counts: plain integers, to which its parts add where something happens.

Nobody is called for them, so they cost an addition. What they are called outside, and what more can
be read of a node while it runs, is in `wsrelay/metrics/table.py`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from functools import partial
from typing import Final, Literal, get_args

__all__ = ["CODES", "RETURNED", "Bound", "Distribution", "Numbers", "Refusal"]

CODES: Final = (
    *(1000, 1001, 1002, 1003, 1005, 1006, 1007),
    *(1008, 1009, 1010, 1011, 1012, 1013, 1014),
)
"""Close codes that are counted one by one (RFC 6455 section 7.4.1, and those registered since).

Applications and clients choose among 2,000 others, which would be as many time series.
"""

RETURNED: Final = "returned"
"""The kind of the end of a process that has returned; all others are those of `ExitKind`."""

Refusal = Literal[
    "origin",
    "host",
    "handshake",
    "max_buffered",
    "rate_limit",
    "application",
    "wrong_answer",
    "host_full",
    "start_failed",
    "not_alive",
    "busy",
    "draining",
    "no_quorum",
    "client_gone",
]
"""Why an upgrade was refused (`docs/metrics.md`)."""

Bound = Literal[
    "mailbox",
    "outbox",
    "slow_client",
    "message_size",
    "max_buffered",
    "max_processes",
    "max_connections",
    "max_connections_per_ip",
    "spawn_rate",
    "log_rate",
]
"""The bounds whose being hit is counted (`docs/metrics.md`)."""

_STARTS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SHORT: Final = (0.0005, *_STARTS)
_LAGS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper bounds of buckets, in seconds. uvloop's timers count milliseconds: a lag of one is none."""


class Distribution:
    """How often a value was at most each of `bounds`, which ascend; the last count is above all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """The values of each bucket alone, not those below it as well."""
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Add a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Numbers:
    """The counts of one node since it was made."""

    def __init__(self) -> None:
        self.messages_from_clients = self.bytes_from_clients = 0
        self.messages_to_clients = self.bytes_to_clients = 0
        self.messages_between = self.bytes_between = 0
        """Messages that a process of this node got from a process or from an HTTP handler."""
        self.opened = 0
        """Upgrades that succeeded."""
        self.closed = dict.fromkeys((*CODES, 0), 0)
        """Ends of connections by close code; 0 is any other."""
        self.refused: dict[Refusal, int] = dict.fromkeys(get_args(Refusal), 0)
        self.hit: dict[Bound, int] = dict.fromkeys(get_args(Bound), 0)
        self.starts: defaultdict[tuple[str, str], int] = defaultdict(int)
        """Spawns by host and entry; the entry is empty for what is not the id of one."""
        self.ends: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        """Ends of processes by host, entry and kind."""
        self.start_seconds: defaultdict[str, Distribution] = defaultdict(
            partial(Distribution, _STARTS)
        )
        """By host: from the moment when a start is asked of it until the handler runs."""
        self.close_seconds = Distribution(_SHORT)
        """From the exit of a process until the close frame of each of its clients is written."""
        self.join_seconds = Distribution(_SHORT)
        """Until a process with a name has taken the `ws.join` of a client."""
        self.lag_seconds = Distribution(_LAGS)
        """How late the event loop is; see `node/lag.py`."""
