"""Calls that need a terminal say that there is none, instead of reading the end of empty input."""

from __future__ import annotations

import builtins
import os
import sys
from typing import Any, Never

__all__ = ["explain_absence"]

_ADVICE = (
    "a terminal, and a worker has none. `wsrelay run --raw-output` gives it yours. Or call the "
    "handler's functions directly in a script or test, or use debugpy.listen(port) and attach to it"
)

_builtin_input = builtins.input


def explain_absence() -> None:
    """Have `breakpoint()`, `input()` and `pdb`, which reads with `input()`, raise with advice."""
    if not os.environ.get("PYTHONBREAKPOINT"):
        sys.breakpointhook = _breakpoint
    builtins.input = _input


def _breakpoint(*_args: Any, **_kwargs: Any) -> Never:
    raise RuntimeError(f"breakpoint() needs {_ADVICE}")


def _input(prompt: object = "", /) -> str:
    """Read a line if the handler has replaced the empty input."""
    try:
        nothing = os.path.samestat(os.fstat(sys.stdin.fileno()), os.stat(os.devnull))  # noqa: PTH116 - as it is
    except (OSError, ValueError, AttributeError):
        nothing = False
    if nothing:
        # Not EOFError: a debugger would take that as a request to quit, and not show it.
        raise RuntimeError(f"input(), which pdb uses too, needs {_ADVICE}")
    return _builtin_input(prompt)
