"""Targets and their arguments on the way from the spawner to the worker.

This is the only place where code crosses a process boundary: it is pickled by the spawner and
unpickled in the worker. None leaves a walled-in host, whose arguments are data (`pack_plain`). The
node passes the bytes on and never looks inside.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
from collections.abc import Callable, Container
from typing import Any, Final

import msgspec

from wsrelay.errors import InvalidTarget, PayloadError
from wsrelay.values import scripts, targets
from wsrelay.values.pid import PID

from . import frames, framing, payload, structs

__all__ = ["pack_elsewhere", "pack_plain", "pack_target", "unpack_target"]


def pack_target(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], entries: Container[str] = ()
) -> tuple[str | None, bytes, str]:
    """Return the target's text (None for a callable), the pickled rest, and a callable's label.

    An id in `entries` is left as it is, for the node to look up. Raises `InvalidTarget`, or
    `PayloadError` for what cannot be pickled.
    """
    arguments = (args, kwargs) if args or kwargs else None
    if isinstance(target, str) and target in entries:
        return target, _pack(arguments), ""
    if isinstance(target, str):
        parsed = targets.parse(target).absolute()
        if parsed.module == "__main__":
            return pack_target(_in_main(parsed.function), args, kwargs)
        text = payload.writable(str(parsed), "target")
        if len(text) > frames.LONGEST_TARGET:
            raise InvalidTarget(
                f"target {text[:40]!r}... has {len(text)} characters, at most "
                f"{frames.LONGEST_TARGET} are allowed"
            )
        return text, _pack(arguments, imports=parsed.module is not None), ""
    if callable(target):
        if isinstance(target, type):
            targets.runnable(target)
        return None, _pack((target, args, kwargs)), targets.label(target)
    raise InvalidTarget(
        f"target {target!r:.200} is neither text (path/to/script.py:function, module:function) "
        "nor a callable"
    )


def _in_main(name: str) -> Callable[..., Any]:
    """Return a function of the script that is running here, which no other process can import."""
    main = sys.modules["__main__"]
    function = getattr(main, name, None)
    if not callable(function):
        raise InvalidTarget(
            f"target '__main__:{name}': the script that is running in this OS process "
            f"({getattr(main, '__file__', None)}) has no function {name!r}"
        )
    return function  # type: ignore[no-any-return]


def pack_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Return arguments as data; raises `PayloadError`."""
    return _plain(
        args, kwargs, "a walled-in host can pass only data to what it starts in another host"
    )


def _plain(args: tuple[Any, ...], kwargs: dict[str, Any], why: str) -> bytes:
    try:
        code = payload.encode([args, kwargs])
    except PayloadError as error:
        raise PayloadError(f"{why}: {error}") from None
    framing.check_size(len(code))
    return code


def pack_elsewhere(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], entries: Container[str], pid: PID
) -> tuple[str, bytes]:
    """Return the id of an entry that another node starts under that PID, and arguments as data.

    Raises `InvalidTarget` for anything but an entry, and `PayloadError`.
    """
    if not isinstance(target, str) or target not in entries:
        raise InvalidTarget(
            f"target {target!r:.200} cannot be started on node {pid.node!r:.80}: other nodes start "
            "only entries of the configuration (by their id), never a function, module or script"
        )
    why = f"only data can be passed to what is started on another node ({pid.node:.80})"
    return target, _plain(args, kwargs, why)


def unpack_target(
    text: str | None,
    code: bytes,
    load: Callable[[targets.Target], Callable[..., Any]],
    *,
    plain: bool = False,
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Return function, args and kwargs; `load` finds the function that a target names.

    `plain`: the code is what `pack_plain` returned, and nothing is unpickled.
    """
    if plain:
        given = payload.decode_bounded(code)
        args, kwargs = msgspec.convert(given, tuple[tuple[Any, ...], dict[str, Any]])
        return load(targets.parse(text or "")), args, kwargs
    folder, content = pickle.loads(code) if code else (None, b"")  # noqa: S301 - the spawner's
    if folder is not None:
        scripts.enter(folder)
    opened = pickle.loads(content) if content else ((), {})  # noqa: S301 - as above
    if text is None:
        function, args, kwargs = opened
        return targets.runnable(function), args, kwargs
    args, kwargs = opened
    return load(targets.parse(text)), args, kwargs


def _pack(value: Any, *, imports: bool = False) -> bytes:
    """Pickle a value and the folder from which the spawner would import what it refers to."""
    folder = scripts.entered()
    if value is None and not (imports and folder is not None):
        return b""
    code = pickle.dumps((folder, b"" if value is None else _pickle(value)))
    framing.check_size(len(code))
    return code


_MADE: Final = 2
"""Where the attributes are in what cloudpickle says of how a class is made."""


def _pickle(value: Any) -> bytes:
    data = io.BytesIO()
    try:
        _pickler()(data).dump(value)
    except Exception as error:
        raise PayloadError(f"cannot be sent to another process: {error}") from error
    return data.getvalue()


@functools.cache
def _pickler() -> Any:
    """Return a class that pickles code of scripts, Structs among it."""
    import cloudpickle  # noqa: PLC0415 - 5 ms that most workers never need

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            # It is called for each part of a function, so the question costs no call.
            if type(value) is structs.META and structs.is_local(value):
                return structs.reduced(value)
            reduced = super().reducer_override(value)
            if isinstance(value, type) and reduced is not NotImplemented and len(reduced) > _MADE:
                structs.forget_uses(reduced[_MADE][0])
            return reduced

    return Pickler
