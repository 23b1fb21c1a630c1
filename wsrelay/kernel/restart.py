"""When to restart a service: exponential backoff with jitter. Pure: no clock, no randomness."""

from __future__ import annotations

import sys
from typing import Final

from msgspec import Struct

from wsrelay.values.bounds import MOST, Bounds, InvalidOptions, wrong

__all__ = ["RestartPolicy", "Restarts"]

_BOUNDS: Final = {
    "initial_delay": Bounds(0.01, MOST, "10ms or more"),
    "max_delay": Bounds(0, MOST, "0 seconds or more"),
    "backoff_factor": Bounds(1, sys.float_info.max, "1 or more, and finite"),
    "jitter": Bounds(0, 1 - 1e-9, "0 or more and less than 1"),
    "max_attempts": Bounds(0, MOST, "0 or more (0: no limit)", whole=True),
}


class RestartPolicy(Struct, frozen=True, kw_only=True):
    """The delays are in seconds; `jitter` is the fraction by which each may deviate.

    After `max_attempts` failures in a row (0: never) the service is given up. Raises
    `InvalidOptions`, a `ValueError`, for values that make no sense, including a delay under 10 ms:
    a restart loop must not be a busy loop.
    """

    initial_delay: float = 1.0
    max_delay: float = 90.0
    backoff_factor: float = 2.0
    jitter: float = 0.1
    max_attempts: int = 0

    def __post_init__(self) -> None:
        problems = wrong(self, _BOUNDS)
        named = {name for name, _ in problems}
        if not named & {"initial_delay", "max_delay"} and self.max_delay < self.initial_delay:
            delays = f"{self.max_delay:g}s and must not be shorter than initial_delay"
            problems.append(("max_delay", f"is {delays}, which is {self.initial_delay:g}s"))
        if problems:
            raise InvalidOptions(problems)


class Restarts:
    """The history of one service. Times are seconds of one monotonic clock."""

    def __init__(self, policy: RestartPolicy, stable_threshold: float) -> None:
        self.attempts = 0
        """Failures in a row."""
        self._policy = policy
        self._stable_threshold = stable_threshold
        self._delay = 0.0
        self._started_at = 0.0

    def started(self, now: float) -> None:
        """Record that the service was started."""
        self._started_at = now

    def failed(self, now: float, chance: float) -> float | None:
        """Return the seconds to wait before the next start, or None to give up.

        `chance` is drawn uniformly from [0, 1). After a run of at least the stable threshold the
        count of failures starts again.
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
