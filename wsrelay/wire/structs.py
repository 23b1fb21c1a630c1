"""Structs of a script that no other process can import, on the way to a worker.

cloudpickle makes a class anew from its attributes, but a `msgspec.Struct` also has what stood
beside its bases (`tag`, `frozen` ...), which would be lost.
"""

from __future__ import annotations

import sys
import types
import typing
from typing import Any, Final

import msgspec
from msgspec import NODEFAULT, Struct

__all__ = ["META", "forget_uses", "is_local", "reduced"]

META: Any = type(Struct)
"""The class of all Structs."""

_OPTIONS: Final = (
    *("frozen", "eq", "order", "array_like", "gc", "repr_omit_defaults", "omit_defaults"),
    *("forbid_unknown_fields", "weakref", "dict", "cache_hash", "tag", "tag_field"),
)


_CHECK: Final = "__post_init__"
"""A method that msgspec looks for when a Struct is made, and not later."""


def is_local(value: Any) -> bool:
    """Whether a Struct cannot be imported where it says that it is."""
    found: Any = None if value.__module__ == "__main__" else sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is not value


def reduced(kind: Any) -> tuple[Any, ...]:
    """Return how pickle makes the Struct: its fields first, as its methods may speak of it."""
    bare = {*vars(META("Bare", (Struct,), {})), "__dict__", "__weakref__", "__annotations__"}
    own = vars(kind).get("__annotations__", {})
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {one.name: one for one in msgspec.structs.fields(kind)}
    keyword_only = any(
        name in kind.__struct_fields__ and name not in kind.__match_args__ for name in own
    )
    namespace: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "__annotations__": {
            name: hint if _is_about(hint, kind) else hints.get(name, hint)
            for name, hint in own.items()
        },
    }
    details = {}
    for name in own.keys() & fields.keys():
        one = fields[name]
        details[name] = {} if one.encode_name == name else {"name": one.encode_name}
        if one.default is not NODEFAULT:
            details[name]["default"] = one.default
        elif one.default_factory is not NODEFAULT:
            details[name]["default_factory"] = one.default_factory
    options = {name: getattr(kind.__struct_config__, name) for name in _OPTIONS}
    rest = {
        name: value
        for name, value in vars(kind).items()
        if name not in bare and name not in kind.__struct_fields__
    }
    options["kw_only"] = keyword_only
    if (check := rest.pop(_CHECK, None)) is not None:
        namespace[_CHECK] = check
    bases = rest.get("__orig_bases__", kind.__bases__)
    arguments = kind.__name__, bases, namespace, details, options
    return _made, arguments, rest, None, None, _completed


def forget_uses(attributes: dict[str, Any]) -> None:
    """Remove what msgspec keeps at a dataclass that it has converted to: it cannot be pickled."""
    attributes.pop("__msgspec_cache__", None)


def _is_about(hint: Any, kind: Any) -> bool:
    """Whether an annotation speaks of the Struct itself, which does not exist yet where it goes."""
    return isinstance(hint, str) and kind.__name__ in hint


def _made(
    name: str,
    bases: tuple[Any, ...],
    namespace: dict[str, Any],
    details: dict[str, dict[str, Any]],
    options: dict[str, Any],
) -> Any:
    namespace |= {field: msgspec.field(**known) for field, known in details.items() if known}
    return types.new_class(name, bases, options, lambda made: made.update(namespace))


def _completed(kind: Any, rest: dict[str, Any]) -> None:
    for name, value in rest.items():
        setattr(kind, name, value)
    # Where an annotation speaks of the Struct itself, its name is looked for in its module.
    if (home := sys.modules.get(kind.__module__)) is not None:
        vars(home).setdefault(kind.__name__, kind)
