"""Where Python stacks are written: when a fatal signal ends the process, and when `STACK` comes."""

from __future__ import annotations

import faulthandler
from typing import Final

from wsrelay import wire

__all__ = ["report_on_standard_error", "write_stacks"]

_STDERR: Final = 2


def report_on_standard_error() -> None:
    """Enable this in a template, for its workers and their children too.

    What it needs is allocated here once, so it costs a worker nothing.
    """
    faulthandler.enable(_STDERR)


def write_stacks(descriptor: int) -> None:
    """Have `STACK` write the stacks of all threads of workers there, and do nothing else.

    They are written where the signal arrives, by code that needs no interpreter: it may be in an
    endless loop or in a library. This too costs a worker nothing.
    """
    faulthandler.register(wire.STACK, descriptor, all_threads=True, chain=False)
