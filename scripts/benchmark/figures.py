"""Figures from samples, and how they are written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from msgspec import Struct

__all__ = ["Figure", "percentile", "plain"]

_DIGITS = 3


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the smallest sample that at least so many percent of them do not exceed."""
    if not samples:
        raise ValueError("no samples")
    rank = math.ceil(percent / 100 * len(samples))
    return sorted(samples)[max(rank, 1) - 1]


def plain(number: float) -> str:
    """Write a number with three digits that count and no exponent."""
    if number == 0:
        return "0"
    decimals = max(_DIGITS - 1 - math.floor(math.log10(abs(number))), 0)
    return f"{number:,.{decimals}f}"


class Figure(Struct, frozen=True):
    """What the repetitions of one measure gave."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The one that stands for all."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the distance of the lowest and the highest, as a part of the median."""
        if not self.median:
            return 0.0
        return (max(self.values) - min(self.values)) / 2 / abs(self.median)

    def text(self, unit: str = "") -> str:
        """Write the median, and the spread if it was measured more than once."""
        shown = f"{plain(self.median)} {unit}".rstrip()
        return f"{shown} ±{self.spread:.0%}" if len(self.values) > 1 else shown
