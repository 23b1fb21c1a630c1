"""A token bucket: a rate per second, and a burst at once."""

from __future__ import annotations

__all__ = ["Bucket"]


class Bucket:
    """`rate` tokens arrive per second, up to `burst`; times are seconds of any monotonic clock."""

    __slots__ = ("_burst", "_rate", "_then", "_tokens")

    def __init__(self, rate: float, burst: float, now: float = 0.0) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._then = now

    def take(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        self._tokens = self._now(now)
        self._then = now
        # Slightly less than a whole token counts: waiting for the returned time must be enough.
        if self._tokens < 1 - 1e-9:
            return (1 - self._tokens) / self._rate
        self._tokens = max(0.0, self._tokens - 1)
        return 0.0

    def full(self, now: float) -> bool:
        """Whether it is full, and so no different from a new bucket."""
        return self._now(now) >= self._burst

    def _now(self, now: float) -> float:
        return min(self._burst, self._tokens + max(0.0, now - self._then) * self._rate)
