"""Durations as people write them: `30s`, `1m30s`, `500ms`."""

from __future__ import annotations

import re
from typing import Any

import durationpy

__all__ = ["parse"]

# durationpy skips whatever stands between the parts.
_FORM = re.compile(r"[+-]?(0|([\d.]+[a-zµμ]+)+)")


def parse(text: Any, *, least: float = 0.0) -> float:
    """Return the duration in seconds.

    Raises `ValueError` for text that is no duration, or one shorter than `least` seconds.
    """
    if not isinstance(text, str):
        raise ValueError(_wrong(text))  # noqa: TRY004 - one error for one mistake
    if _FORM.fullmatch(text) is None:
        raise ValueError(_wrong(text))
    try:
        seconds = durationpy.from_str(text).total_seconds()
    except (durationpy.DurationError, OverflowError):
        raise ValueError(_wrong(text)) from None
    if seconds < least:
        raise ValueError(f"{text!r} is too short, the least is {least * 1000:g}ms")
    return float(seconds)


def _wrong(given: object) -> str:
    return f"{given!r} is not a duration; write it like '30s', '1m30s' or '500ms'"
