"""Durations as people write them: `30s`, `1m30s`, `500ms`."""

from __future__ import annotations

import re
from typing import Any, Final

__all__ = ["parse"]

_UNITS: Final = {
    "ns": 1e-9,
    **dict.fromkeys(("us", "µs", "μs"), 1e-6),
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
    "w": 7 * 86_400.0,
    "mm": 30 * 86_400.0,
    "y": 365 * 86_400.0,
}
"""Seconds of each unit."""

_PART: Final = re.compile(rf"(\d+\.?\d*|\.\d+)({'|'.join(sorted(_UNITS, key=len, reverse=True))})")
_FORM: Final = re.compile(rf"([+-]?)(0|({_PART.pattern})+)")

_LONGEST: Final = 1e14
"""Seconds, about three million years: anything longer is a mistake."""


def parse(text: Any, *, least: float = 0.0) -> float:
    """Return the duration in seconds.

    Raises `ValueError` for text that is not a duration, or is shorter than `least` seconds.
    """
    if not isinstance(text, str) or (form := _FORM.fullmatch(text)) is None:
        raise ValueError(_wrong(text))
    seconds = sum(float(count) * _UNITS[unit] for count, unit in _PART.findall(text))
    if seconds >= _LONGEST:
        raise ValueError(_wrong(text))
    seconds = round(-seconds if form[1] == "-" else seconds, 6)  # 0.1 and 0.2 are 0.3
    if seconds < least:
        raise ValueError(f"{text!r} is too short; the minimum is {least * 1000:g}ms")
    return seconds


def _wrong(given: object) -> str:
    return f"{given!r} is not a duration; write it like '30s', '1m30s' or '500ms'"
