"""Where Python stacks are written: when a fatal signal ends a process, and when they are asked for.

`faulthandler` reads the stacks of other threads as they are: if these run, what it reads may be
gone in that very moment, which ends the process. While Python runs in the main thread no other one
does, so `STACK` is handled there; `STACK_AT_ONCE` is for when that thread never gets that far.
"""

from __future__ import annotations

import faulthandler
import signal
import sys
from types import FrameType
from typing import Final

from wsrelay import wire
from wsrelay.values import current
from wsrelay.wire.tally import ASKED

__all__ = ["report_on_standard_error", "write_stacks"]

_STDERR: Final = 2

_MOST_THREADS: Final = 100
"""Threads that `faulthandler` writes, those that began last; the main thread is the first."""


def report_on_standard_error() -> None:
    """Enable this in a template, for its workers and their children too.

    What it needs is allocated here once, so it costs a worker nothing.
    """
    faulthandler.enable(_STDERR)


def write_stacks(descriptor: int) -> None:
    """Have the stacks of all threads of workers be written there when they are asked for.

    At `STACK_AT_ONCE` that happens where the signal arrives, by code that needs no interpreter: it
    may be in a library. This too costs a worker nothing.
    """

    def write(_number: int, _frame: FrameType | None) -> None:
        # A main thread that was long in a library comes here when nobody waits any more.
        try:
            if current.here is not None and current.here.pipe.tally[ASKED]:
                faulthandler.dump_traceback(descriptor, all_threads=True)
                if len(sys._current_frames()) > _MOST_THREADS:  # noqa: SLF001 - it is documented
                    faulthandler.dump_traceback(descriptor, all_threads=False)
        except (RecursionError, MemoryError):  # user code has not asked for this
            pass

    faulthandler.register(wire.STACK_AT_ONCE, descriptor, all_threads=True, chain=False)
    signal.signal(wire.STACK, write)
