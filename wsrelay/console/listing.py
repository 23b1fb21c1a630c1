"""A part of a long list: what is searched for, in order, as much as a page shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from .looks import Look

__all__ = ["PAGE", "listed"]

PAGE: Final = 50
"""Rows that are shown at once."""

T = TypeVar("T")


def listed(
    items: Iterable[T],
    look: Look,
    *,
    columns: Mapping[str, Callable[[T], Any]],
    words: Callable[[T], str],
    key: Callable[[T], str],
    row: Callable[[T], dict[str, Any]],
) -> dict[str, Any]:
    """Return the part of a list that a page shows.

    `columns` are what can be sorted by, the first unless another one is asked for; None is last,
    whatever the direction. `words` is where all words of the search have to be in. The result has
    how many items there are in all (`total`), how many of them `match`, the number of the first
    that is shown (`start`), their keys in `order` and their `rows` by key.
    """
    total, found = 0, []
    wanted = look.search.casefold().split()
    for item in items:
        total += 1
        if not wanted or all(word in text for text in [words(item).casefold()] for word in wanted):
            found.append(item)
    value = columns.get(look.sort) or next(iter(columns.values()))
    keyed = [(value(item), key(item), item) for item in found]
    known = [one for one in keyed if one[0] is not None]
    known.sort(key=lambda one: one[1])
    known.sort(key=lambda one: one[0], reverse=look.descending)
    rest = sorted((one for one in keyed if one[0] is None), key=lambda one: one[1])
    ordered = [*known, *rest]
    start = min(look.start, max(len(ordered) - 1, 0)) // PAGE * PAGE
    shown = ordered[start : start + PAGE]
    return {
        "total": total,
        "match": len(found),
        "start": start,
        "order": [name for _, name, _ in shown],
        "rows": {name: row(item) for _, name, item in shown},
    }
