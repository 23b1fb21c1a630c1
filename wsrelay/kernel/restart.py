"""When to start a service again: exponential backoff with jitter. Pure: time and chance come in."""

from __future__ import annotations

import math

from msgspec import Struct

__all__ = ["RestartPolicy", "Restarts"]

_LEAST_DELAY = 0.01


class RestartPolicy(Struct, frozen=True, kw_only=True):
    """The delays are seconds; `jitter` is the share by which each may differ from its value.

    After `max_attempts` failures in a row (0: never) it is given up. Raises `ValueError` for values
    that make no sense, a delay under 10 ms among them: a restart loop must not be a busy loop.
    """

    initial_delay: float = 1.0
    max_delay: float = 90.0
    backoff_factor: float = 2.0
    jitter: float = 0.1
    max_attempts: int = 0

    def __post_init__(self) -> None:
        if not _LEAST_DELAY <= self.initial_delay < math.inf:
            raise ValueError(f"initial_delay {self.initial_delay}: at least 10ms")
        if not self.initial_delay <= self.max_delay < math.inf:
            raise ValueError(f"max_delay {self.max_delay}: at least initial_delay")
        if not 1 <= self.backoff_factor < math.inf:
            raise ValueError(f"backoff_factor {self.backoff_factor}: at least 1")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter {self.jitter}: at least 0 and below 1")
        if self.max_attempts < 0:
            raise ValueError(f"max_attempts {self.max_attempts}: at least 0, which is no limit")


class Restarts:
    """The history of one service. Times are seconds of one steady clock."""

    def __init__(self, policy: RestartPolicy, stable_threshold: float) -> None:
        self.attempts = 0
        """Failures in a row."""
        self._policy = policy
        self._stable_threshold = stable_threshold
        self._delay = 0.0
        self._started_at = 0.0

    def started(self, now: float) -> None:
        """Note that the service was started."""
        self._started_at = now

    def failed(self, now: float, chance: float) -> float | None:
        """Return the seconds to wait before the next start, or None to give up.

        `chance` is drawn evenly from [0, 1). A service that ran for the stable threshold has begun
        anew.
        """
        policy = self._policy
        if now - self._started_at >= self._stable_threshold:
            self.attempts = 0
        self.attempts += 1
        if policy.max_attempts and self.attempts >= policy.max_attempts:
            return None
        if self.attempts == 1:
            self._delay = policy.initial_delay
        else:
            self._delay = min(self._delay * policy.backoff_factor, policy.max_delay)
        return self._delay * (1 + policy.jitter * (2 * chance - 1))
