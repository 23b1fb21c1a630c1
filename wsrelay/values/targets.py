"""What can be spawned, as text: `path/to/script.py:function` and `module:function`.

See `wsrelay.process.spawn`; the function's default name is `handler`.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from wsrelay.errors import InvalidTarget

__all__ = ["DEFAULT_FUNCTION", "Target", "TargetEntry", "label", "parse", "runnable", "text_of"]

DEFAULT_FUNCTION: Final = "handler"

_LONGEST_LABEL: Final = 200
"""Characters."""

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class Target(Struct, frozen=True):
    """A function in a script (`script` is a path) or in a module (`module` is its dotted name)."""

    function: str
    script: str | None = None
    module: str | None = None

    def __str__(self) -> str:
        return f"{self.script or self.module}:{self.function}"

    def absolute(self) -> Target:
        """Return it with the script's absolute path, so that it means the same anywhere."""
        script = self.script and str(Path(self.script).resolve())
        return Target(self.function, script=script, module=self.module)


class TargetEntry(Struct, frozen=True):
    """A target under an id, as a configuration declares it; `host` is where it runs by default."""

    target: str
    host: str | None = None


def parse(text: str) -> Target:
    """Parse a target; raises `InvalidTarget` for text that has neither form."""
    place, colon, function = text.rpartition(":")
    if not colon or place.endswith((":", "/")) or "/" in function or function.endswith(".py"):
        place, function = text, DEFAULT_FUNCTION
    elif not function.isidentifier():
        raise InvalidTarget(f"target {text!r:.200}: {function!r:.200} is not a function name")
    # Every worker does this; with PurePath it would copy 34 of its pages.
    file = place.rstrip("/").rpartition("/")[2]
    if file.endswith(".py") and file != ".py":
        return Target(function, script=place)
    if colon and _MODULE.fullmatch(place):
        return Target(function, module=place)
    raise InvalidTarget(
        f"target {text!r:.200} is neither path/to/script.py:function nor module:function"
    )


_RUN: Final = "__wsrelay_run__"
"""The class method of a `Room` that runs one."""


def runnable(target: Callable[..., Any]) -> Callable[..., Any]:
    """Return what is called to run a target: itself, or a room's class method.

    Raises `InvalidTarget` for any other class.
    """
    if not isinstance(target, type):
        return target
    run: Callable[..., Any] | None = getattr(target, _RUN, None)
    if run is None:
        raise InvalidTarget(
            f"target {target.__qualname__} is a class, but not a subclass of wsrelay.Room or "
            "wsrelay.aio.Room; write a function that uses it"
        )
    return run


def text_of(target: Any) -> str:
    """Return the text that names a function or class; raises `InvalidTarget` if none does.

    It must be found where it says that it is, at the top level of a module. `__main__` stands for
    the script that is running in this OS process.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    home = sys.modules.get(str(module))
    if name is None or not callable(target) or getattr(home, name, None) is not target:
        raise InvalidTarget(
            f"target {target!r:.200} cannot be written as text (it is {_what(target, name)}): give "
            "a function or class at the top level of a module, or the text that names it, such as "
            "module:function; anything else can be started by process.spawn and be the target_pid"
        )
    if isinstance(target, type):
        runnable(target)
    return f"{_home(target)}:{name}"


def label(target: Any) -> str:
    """Return how a callable is shown to operators, such as `app:Blue` or `app:main.<locals>.work`.

    It need not be found there, and is empty for what does not say where it is from.
    """
    while isinstance(target, functools.partial):
        target = target.func
    try:
        if not isinstance(getattr(target, "__qualname__", None), str):  # an object
            target = type(target)
        text = f"{_home(target)}:{target.__qualname__}"
    except Exception:  # noqa: BLE001 - attributes may be anything, and none is worth a failure
        return ""
    return text[:_LONGEST_LABEL].encode(errors="backslashreplace").decode()


def _home(target: Any) -> str:
    """Return the module of a function or class, or the file of a script whose name was taken."""
    module = getattr(target, "__module__", None)
    if not isinstance(module, str):  # as that of methods of builtins
        module = type(target).__module__
    if module.startswith("wsrelay.values.scripts."):
        return str(getattr(sys.modules.get(module), "__file__", module))
    return module


def _what(target: Any, name: str | None) -> str:
    if not callable(target):
        return f"of type {type(target).__name__}, not a function"
    if name is None:
        return f"an object of type {type(target).__name__}"
    if name.endswith("<lambda>"):
        return "a lambda"
    if "<locals>" in name:
        return "defined inside a function"
    if "." in name:
        return "a part of a class"
    return f"not what {target.__module__}:{name} is"
