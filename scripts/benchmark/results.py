"""What was measured: rows of figures, in seconds and bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

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


class Figure(NamedTuple):
    """What the repetitions of one measure gave."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value that stands for all."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the distance between the lowest and the highest, as a part of the median."""
        if not self.median:
            return 0.0
        return (max(self.values) - min(self.values)) / 2 / abs(self.median)

    def divided(self, unit: float) -> Figure:
        """Return it in another unit."""
        return Figure(tuple(value / unit for value in self.values))

    def text(self, unit: str = "") -> str:
        """Write the median, and the spread if it was measured more than once."""
        shown = f"{plain(self.median)} {unit}".rstrip()
        return f"{shown} ±{self.spread:.0%}" if len(self.values) > 1 else shown


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
        self._values: dict[Key, dict[str, list[float]]] = {}
        self.failed: dict[Key, str] = {}

    def add(self, key: Key, figures: Mapping[str, float]) -> None:
        """Take in one repetition."""
        row = self._values.setdefault(key, {})
        for name, value in figures.items():
            row.setdefault(name, []).append(value)

    def __iter__(self) -> Iterator[Key]:
        """Give the rows in the order in which they were first measured, or failed."""
        return iter(dict.fromkeys([*self._values, *self.failed]))

    def row(self, key: Key) -> dict[str, Figure]:
        """Return the figures of one row by name; none if it was not measured."""
        return {name: Figure(tuple(values)) for name, values in self._values.get(key, {}).items()}

    def total(self, key: Key, names: Sequence[str]) -> float | None:
        """Return the sum of some figures' medians; None if one was not measured."""
        row = self.row(key)
        if not all(name in row for name in names):
            return None
        return sum(row[name].median for name in names)
