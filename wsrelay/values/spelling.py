"""Hints for misspelt words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(given: str, known: Iterable[str]) -> str:
    """Return a hint: the nearest known word, or all of them."""
    known = list(known)
    if close := difflib.get_close_matches(given, known, 1):
        return f"did you mean {close[0]!r}?"
    return f"there is {', '.join(known)}" if known else "there is none"
