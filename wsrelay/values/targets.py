"""What can be spawned, as text: `path/to/script.py:function` and `module:function`.

See `wsrelay.process.spawn`; the function's default name is `handler`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from msgspec import Struct

from wsrelay.errors import InvalidTarget

__all__ = ["DEFAULT_FUNCTION", "Target", "TargetEntry", "parse"]

DEFAULT_FUNCTION: Final = "handler"

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
