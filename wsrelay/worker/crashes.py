"""Where the Python stack is written when a fatal signal such as SIGSEGV ends the process."""

from __future__ import annotations

import faulthandler
from typing import Final

__all__ = ["report_on_standard_error"]

_STDERR: Final = 2


def report_on_standard_error() -> None:
    """Enable this in a template, for its workers and their children too.

    What it needs is allocated here once, so it costs a worker nothing.
    """
    faulthandler.enable(_STDERR)
