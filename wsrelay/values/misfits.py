"""What in a value cannot be encoded, and where it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

__all__ = ["ERRORS", "as_built_in", "find", "problem"]

ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)
"""What msgspec raises for values that it cannot encode, or decode again."""

_DEEPEST: Final = 500


def find(
    value: Any, where: str, encodes: Callable[[Any], bool], above: tuple[int, ...] = ()
) -> tuple[str, str]:
    """Return the place of the first value that cannot be encoded, and what is wrong with it."""
    if id(value) in above or len(above) > _DEEPEST:
        return where, "nested too deeply, or inside itself"
    for step, item, is_key in _parts(value):
        if not encodes({item: None} if is_key else item):
            if is_key:
                no_key = f"a {type(item).__qualname__} cannot be a key"
                return f"{where}, key {item!r}", no_key if encodes(item) else problem(item)
            return find(item, f"{where}{step}", encodes, (*above, id(value)))
    return where, problem(value)


def _parts(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """Yield `(step to the item, item, whether it is a key)` for everything in a container."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield "", key, True
            yield f"[{key!r}]", item, False
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield f"[{index}]", item, False
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield f".{name}", getattr(value, name), False
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name), False


def problem(value: Any) -> str:
    """Return what is wrong with a value that cannot be encoded."""
    if isinstance(value, int):
        return f"{value} does not fit into 64 bits"
    if isinstance(value, str):
        return "the text has surrogates, which UTF-8 cannot represent"
    kind = type(value)
    return (
        f"{kind.__module__}.{kind.__qualname__} is not data; payloads are made of None, bool, int, "
        "float, str, bytes, list, dict, datetime, dataclasses and the like"
    )


def as_built_in(value: Any) -> Any:
    """Convert an instance of a subclass of a built-in to that; everything else is not data."""
    if isinstance(value, str):
        return str.__str__(value)
    built_ins: tuple[Any, ...] = (int, float, dict, list, tuple, set, frozenset, bytes)
    for kind in built_ins:
        if isinstance(value, kind):
            return kind(value)
    raise TypeError
