"""How figures are written in what the console finds."""

from __future__ import annotations

__all__ = ["duration", "size"]


def duration(seconds: float) -> str:
    """Write a duration in whole units: `12 s`, `3 min`, `2 h`."""
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.0f} h"  # noqa: PLR2004


def size(amount: float) -> str:
    """Write bytes in the largest unit of which there is one: `4.0 MB`."""
    if amount < 1024:  # noqa: PLR2004
        return f"{amount:.0f} bytes"
    for unit in ("KB", "MB"):
        amount /= 1024
        if amount < 1024:  # noqa: PLR2004
            return f"{amount:.1f} {unit}"
    return f"{amount / 1024:.1f} GB"
