"""Which processes have messages waiting and take none.

What each has taken is looked at a few times within its host's `stall`, by one timer for all. Time
counts only as far as the node, the process and its template run.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Final

from wsrelay.kernel import ProcessState
from wsrelay.values import linux
from wsrelay.values.pid import PID
from wsrelay.wire.tally import TAKEN

from .process import WorkerProcess

__all__ = ["Stalls"]

_LOOKS: Final = 8
"""Looks within the shortest stall."""

_LONGEST: Final = 5.0
"""Seconds between two looks at most."""

_AT_ONCE: Final = 500
"""Processes that are looked at in one iteration of the event loop: a millisecond."""


class _Watched:
    """A process, how much it had taken when it was looked at, and for how long it was no more."""

    __slots__ = ("is_stalled", "process", "seconds", "stall", "taken", "waits")

    def __init__(self, process: WorkerProcess, stall: float) -> None:
        self.process = process
        self.stall = stall
        self.taken = 0
        self.waits = False
        """Whether messages waited at the last look."""
        self.seconds = 0.0
        self.is_stalled = False


class Stalls:
    """Calls `found` with each process that has stalled, once until it takes messages again.

    Nothing runs while no process is watched.
    """

    def __init__(self, found: Callable[[WorkerProcess], None]) -> None:
        self._found = found
        self._watched: dict[PID, _Watched] = {}
        self._timer: asyncio.Handle | None = None
        self._last = 0.0
        """When the last look began, in the time of the event loop."""

    def watch(self, process: WorkerProcess, stall: float) -> None:
        """Look at a process from now on, for `stall` seconds without a message taken."""
        self._watched[process.pid] = _Watched(process, stall)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._last = loop.time()
            self._timer = loop.call_later(self._pause(), self._look)

    def forget(self, process: WorkerProcess) -> None:
        """Look at it no more, if it was watched."""
        if self._watched.pop(process.pid, None) is not None and not self._watched:
            self.close()

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def looks(self) -> bool:
        """Whether any process is watched."""
        return self._timer is not None

    def is_stalled(self, process: WorkerProcess) -> bool:
        """Whether it has stalled, and has taken nothing since."""
        watched = self._watched.get(process.pid)
        return watched is not None and watched.is_stalled and not _moves(watched)

    def _pause(self) -> float:
        return min(_LONGEST, *(one.stall / _LOOKS for one in self._watched.values()))

    def _look(self) -> None:
        now, pause = asyncio.get_running_loop().time(), self._pause()
        passed, self._last = min(now - self._last, 2 * pause), now
        self._go_on(iter(list(self._watched.values())), passed, pause)

    def _go_on(self, rest: Iterator[_Watched], passed: float, pause: float) -> None:
        """Look at the next ones, and come back for the others."""
        loop, looked = asyncio.get_running_loop(), 0
        for watched in itertools.islice(rest, _AT_ONCE):
            looked += 1
            if watched.process.pid in self._watched:
                self._look_at(watched, passed)
        if self._watched:
            self._timer = (
                loop.call_soon(self._go_on, rest, passed, pause)
                if looked == _AT_ONCE
                else loop.call_later(pause, self._look)
            )

    def _look_at(self, watched: _Watched, passed: float) -> None:
        process = watched.process
        if _moves(watched) or not process.waiting:
            watched.taken = 0 if process.tally is None else process.tally[TAKEN]
            watched.waits, watched.seconds, watched.is_stalled = process.waiting > 0, 0.0, False
        elif not watched.waits:
            watched.waits = True
        elif not process.frozen and not _stopped(process.os_pid or 0):
            watched.seconds += passed
            if watched.seconds >= watched.stall and not watched.is_stalled:
                watched.is_stalled = True
                self._found(process)


def _stopped(os_pid: int) -> bool:
    """Whether a worker or its template is stopped by somebody."""
    family = linux.relations(os_pid)
    return linux.stopped(os_pid) or (family is not None and linux.stopped(family[0]))


def _moves(watched: _Watched) -> bool:
    """Whether it has taken messages since the last look, or cannot stall at the moment."""
    process = watched.process
    return (
        process.row.state is not ProcessState.RUNNING
        or process.tally is None
        or process.tally[TAKEN] != watched.taken
    )
