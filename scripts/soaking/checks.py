"""Whether a series of measurements grows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["growth"]


def growth(series: Sequence[float], share: float, allowance: float) -> str | None:
    """Return by how much a series grew, or None if it did not.

    The first third is warm-up; the median of the last third is compared with that of the second,
    and may be larger by `share` (of it) and `allowance`. Fewer than six points prove nothing.
    """
    third = len(series) // 3
    if third < 2:  # noqa: PLR2004 - a median of one says nothing
        return None
    before = statistics.median(series[third : 2 * third])
    after = statistics.median(series[-third:])
    most = before * (1 + share) + allowance
    return f"from {before:,.0f} to {after:,.0f} (at most {most:,.0f})" if after > most else None
