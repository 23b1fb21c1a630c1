"""What was measured: rows of figures, in seconds and bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Figure", "Key", "Results", "percentile", "plain"]

_DIGITS = 3


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least so many percent of them do not exceed."""
    if not samples:
        raise ValueError("no samples")
    rank = math.ceil(percent / 100 * len(samples))
    return sorted(samples)[max(rank, 1) - 1]


def plain(number: float) -> str:
    """Write a number with three significant digits and no exponent."""
    if number == 0:
        return "0"
    decimals = max(_DIGITS - 1 - math.floor(math.log10(abs(number))), 0)
    return f"{number:,.{decimals}f}"


class Figure(tuple[float, ...]):
    """What the repetitions of one measure gave, each in seconds, bytes or pieces a second."""

    __slots__ = ()

    @property
    def median(self) -> float:
        """The value that stands for all."""
        return statistics.median(self)

    def text(self, unit: str = "", scale: float = 1.0) -> str:
        """Write the median in a unit of so many seconds or bytes, and ± half the range.

        The latter is a part of the median, and is left out if it was measured only once.
        """
        shown = f"{plain(self.median / scale)} {unit}".rstrip()
        if len(self) == 1 or not self.median:
            return shown
        return f"{shown} ±{(max(self) - min(self)) / 2 / abs(self.median):.0%}"

    def data(self) -> dict[str, Any]:
        """Return it for programs."""
        values = list(self)
        return {"median": self.median, "least": min(self), "most": max(self), "values": values}


class Key(NamedTuple):
    """Which row."""

    workload: str
    case: str
    peer: str

    @property
    def what(self) -> str:
        """The workload and its case."""
        return f"{self.workload} {self.case}".strip()


class Results:
    """Figures by row and name, and why rows could not be measured."""

    def __init__(self) -> None:
        self.rows: dict[Key, dict[str, Figure]] = {}
        """In the order in which they were first measured, or failed."""
        self.failed: dict[Key, str] = {}

    def add(self, key: Key, figures: Mapping[str, float]) -> None:
        """Take in one repetition."""
        row = self.rows.setdefault(key, {})
        for name, value in figures.items():
            row[name] = Figure((*row.get(name, ()), value))

    def fail(self, key: Key, why: str) -> None:
        """Note why a row cannot be measured (again); the first reason stays."""
        self.rows.setdefault(key, {})
        self.failed.setdefault(key, why)

    def total(self, key: Key, names: Iterable[str]) -> float | None:
        """Return the sum of some figures' medians; None if one was not measured."""
        row = self.rows.get(key, {})
        if any(name not in row for name in names):
            return None
        return sum(row[name].median for name in names)
