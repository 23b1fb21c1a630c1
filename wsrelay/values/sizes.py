"""Sizes as people write them: `512MB`, `64KB`, `1.5GB`; the units are powers of 1024."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final

__all__ = ["ITEM", "parse", "show"]

ITEM: Final = 128
"""Bytes that each item in a queue counts in addition to its payload.

An object, its bytes and its place in the queue take no more (90 to 110 measured): a queue that
counted only payloads held 89 MB of empty messages and was not full.
"""

_FORM: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])i?)?B?", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse(value: Any) -> int:
    """Return the size in bytes; a whole number is returned as is. Raises `ValueError`."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _FORM.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size; write it like '512MB', '64KB' or '1.5GB'")
    number, unit = match.groups()
    return int(Decimal(number) * _UNITS[(unit or "").upper()])


def show(size: int) -> str:
    """Return the size in the form that `parse` reads, in the largest unit that divides it."""
    for unit in "TGMK":
        if size and size % _UNITS[unit] == 0:
            return f"{size // _UNITS[unit]}{unit}B"
    return f"{size}B"
