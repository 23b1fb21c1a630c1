"""When a room's ticks are due."""

from __future__ import annotations

from collections.abc import Mapping

from .declarations import Every

__all__ = ["Schedule"]


class Schedule:
    """The ticks of a room; each begins when its first client joins, and rests while it is empty.

    Those with `when_empty` begin with the room. A tick is due at its beginning + n * interval; what
    was missed is skipped. Whoever has it tells it the time.
    """

    def __init__(self, ticks: Mapping[str, Every], now: float) -> None:
        self._ticks = ticks
        self._due = {name: now + tick.seconds for name, tick in ticks.items() if tick.when_empty}

    def look(self, *, is_empty: bool, now: float) -> None:
        """Begin or end what depends on whether somebody is there."""
        for name, tick in self._ticks.items():
            if is_empty and not tick.when_empty:
                self._due.pop(name, None)
            elif not is_empty:
                self._due.setdefault(name, now + tick.seconds)

    def left(self, now: float) -> float | None:
        """Return how many seconds are left until the next is due (0: it is), None if none runs."""
        return max(min(self._due.values()) - now, 0.0) if self._due else None

    def take(self, now: float) -> str:
        """Return the one that is due first; it is due again at a later time than now."""
        name = min(self._due, key=self._due.__getitem__)
        seconds = self._ticks[name].seconds
        late = max(now - self._due[name], 0.0)
        self._due[name] += seconds * (1 + late // seconds)
        return name
