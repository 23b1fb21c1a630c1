"""Differences of JSON objects, as JSON Merge Patch has them (RFC 7396).

A patch says null for what is to be removed, so no value in a state may be None: what is not known
is left out.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["difference", "patched"]

_MISSING: Final = object()


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the patch that makes `new` of `old`; it is empty if they are equal."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key, _MISSING)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := difference(before, value):
                patch[key] = inner
        elif type(value) is not type(before) or value != before:
            patch[key] = value
    return patch


def patched(old: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return what a patch makes of an object; `page/live.js` does the same."""
    new = dict(old)
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        elif isinstance(value, dict):
            before = new.get(key)
            new[key] = patched(before if isinstance(before, dict) else {}, value)
        else:
            new[key] = value
    return new
