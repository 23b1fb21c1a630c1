"""How many connections a server admits, in all and from one address, before it reads anything."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from wsrelay.relay.rate_limited_log import RateLimitedLog
from wsrelay.values.netblock import is_loopback, netblock

__all__ = ["Admission"]

logger = logging.getLogger(__name__)

_REFUSED: Final = 100
"""Connections beyond the bound that may wait for the response that refuses them."""


class Admission:
    """The connections of one server; a bound of 0 means none.

    An IPv6 client counts by its /64, which is what one subscriber gets. Loopback addresses and
    Unix sockets have no bound per address: behind them is a proxy with everybody's clients.
    """

    def __init__(self, most: int, most_per_ip: int) -> None:
        self.count = 0
        self._most = most
        self._most_per_ip = most_per_ip
        self._of: Counter[str] = Counter()
        self.lines = RateLimitedLog(logger)
        """Where refusals are logged."""

    def enter(self, host: str | None, now: float) -> int:
        """Let a connection in and return 0, or the HTTP status that refuses it.

        In both cases, call `leave` once when it ends.
        """
        self.count += 1
        key = _key(host)
        if key is not None:
            self._of[key] += 1
        if self._most and self.count > self._most:
            why = "%s: 503: there are %d connections (max_connections)"
            self.lines.warning(now, why, host, self._most, client=host)
            return 503
        if key is not None and self._most_per_ip and self._of[key] > self._most_per_ip:
            why = "%s: 429: it has %d connections (max_connections_per_ip)"
            self.lines.warning(now, why, host, self._most_per_ip, client=host)
            return 429
        return 0

    @property
    def overrun(self) -> bool:
        """Whether there are so many to refuse that they no longer get a response."""
        return bool(self._most) and self.count > self._most + _REFUSED

    def leave(self, host: str | None) -> None:
        """Count a connection out."""
        self.count -= 1
        key = _key(host)
        if key is not None:
            self._of[key] -= 1
            if not self._of[key]:
                del self._of[key]


def _key(host: str | None) -> str | None:
    """Return what an address counts as, or None: it has no bound per address."""
    return netblock(host) if host and not is_loopback(host) else None
