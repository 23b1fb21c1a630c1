"""Where the Python stack goes when a fatal signal, SIGSEGV for example, ends the process."""

from __future__ import annotations

import faulthandler
from typing import Final

__all__ = ["tell_on_standard_error"]

_STDERR: Final = 2


def tell_on_standard_error() -> None:
    """Enable it in a template, for its workers and their children too.

    What it needs is made here once: it costs a worker nothing.
    """
    faulthandler.enable(_STDERR)
