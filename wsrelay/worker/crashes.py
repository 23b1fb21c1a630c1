"""Where the Python stack goes when a fatal signal, SIGSEGV for example, ends the process."""

from __future__ import annotations

import faulthandler
from typing import Final

__all__ = ["leave_the_pipe", "tell_on_standard_error", "tell_the_node"]

_STDERR: Final = 2


def tell_on_standard_error() -> None:
    """Enable it in a template, for its children too.

    What it needs is made here once: it costs a worker nothing.
    """
    faulthandler.enable(_STDERR)


def tell_the_node(pipe: int) -> None:
    """Let a worker write it behind its last frame."""
    faulthandler.enable(pipe)


def leave_the_pipe() -> None:
    """Have a child of a worker, which has no part in the pipe, write to standard error again."""
    if faulthandler.is_enabled():
        faulthandler.enable(_STDERR)
