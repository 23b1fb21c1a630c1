"""Targets and their arguments on the way from the spawner to the worker.

The only place where code crosses a process border: pickled by the spawner, opened in the worker.
The node passes the bytes on and never looks inside.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Container
from typing import Any

from . import targets
from .errors import InvalidTarget, PayloadError
from .payload import writable

__all__ = ["pack_target", "unpack_target"]


def pack_target(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], entries: Container[str] = ()
) -> tuple[str | None, bytes]:
    """Return the target's text (None for a callable) and the pickled rest.

    An id among `entries` stays as it is, for the node to look up. Raises `InvalidTarget`, or
    `PayloadError` for what cannot be pickled.
    """
    if isinstance(target, str) and target in entries:
        return target, _pickle((args, kwargs)) if args or kwargs else b""
    if isinstance(target, str):
        text = writable(str(targets.parse(target).absolute()), "target")
        return text, _pickle((args, kwargs)) if args or kwargs else b""
    if callable(target):
        return None, _pickle((target, args, kwargs))
    raise InvalidTarget(
        f"target {target!r:.200} is neither text (path/to/script.py:function, module:function) "
        "nor a callable"
    )


def unpack_target(
    text: str | None, code: bytes, load: Callable[[targets.Target], Callable[..., Any]]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return function, args and kwargs; `load` finds the function that a text names."""
    if text is None:
        function, args, kwargs = pickle.loads(code)  # noqa: S301 - written by the spawner
        return function, args, kwargs
    args, kwargs = pickle.loads(code) if code else ((), {})  # noqa: S301 - as above
    return load(targets.parse(text)), args, kwargs


def _pickle(value: Any) -> bytes:
    import cloudpickle  # noqa: PLC0415 - 5 ms that most workers never need

    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:
        raise PayloadError(f"cannot be sent to another process: {error}") from error
    return data
