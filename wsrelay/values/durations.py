"""Durations as people write them: `30s`, `1m30s`, `500ms`."""

from __future__ import annotations

import math
import re
from typing import Any, Final

__all__ = ["LONGEST", "either", "parse", "seconds_of", "show"]

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

LONGEST: Final = 1e9
"""Seconds, 30 years: it fits every clock of an operating system."""


def parse(text: Any, *, least: float = 0.0) -> float:
    """Return the duration in seconds.

    Raises `ValueError` for text that is not a duration, below `least` seconds and above 30 years.
    """
    if not isinstance(text, str) or (form := _FORM.fullmatch(text)) is None:
        raise ValueError(_wrong(text))
    seconds = sum(float(count) * _UNITS[unit] for count, unit in _PART.findall(text))
    if seconds > LONGEST:
        raise ValueError(f"{text!r:.80} is too long; the maximum is {LONGEST:g}s, 30 years")
    seconds = round(-seconds if form[1] == "-" else seconds, 6)  # 0.1 and 0.2 are 0.3
    if seconds < least:
        raise ValueError(f"{text!r} is too short; the minimum is {least * 1000:g}ms")
    return seconds


def seconds_of(value: Any, what: str, *, least: float = 0.0) -> float:
    """Return a number of seconds that user code gives as the argument `what`.

    Raises `TypeError` if it is not a number, `ValueError` below `least` and above 30 years.
    """
    is_number = not isinstance(value, str | bytes | bytearray | bool)
    try:
        number = float(value) if is_number else math.nan
    except (TypeError, ValueError, OverflowError):
        is_number, number = isinstance(value, int), math.nan
    if not is_number:
        raise TypeError(f"{what}: {value!r:.80} is not a number of seconds, like 0.5 or 30")
    if not least <= number <= LONGEST:
        raise ValueError(f"{what}: {value!r:.80} seconds; it is from {least:g} to {LONGEST:g}")
    return number


def either(value: Any, what: str) -> float:
    """Return a duration, which user code gives as text or as a number, in seconds.

    Raises as `parse` and `seconds_of` do, with `what` it is.
    """
    if not isinstance(value, str):
        return seconds_of(value, what)
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def show(duration: float) -> str:
    """Return a duration of so many seconds as text that `parse` reads, to the microsecond."""
    return f"{duration:.6f}".rstrip("0").rstrip(".") + "s"


def _wrong(given: object) -> str:
    return f"{given!r} is not a duration; write it like '30s', '1m30s' or '500ms'"
