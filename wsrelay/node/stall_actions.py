"""What a node does about a process that has stalled."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from wsrelay.kernel import Signal
from wsrelay.values.durations import show
from wsrelay.values.message import ExitError, ExitKind
from wsrelay.values.pid import PID
from wsrelay.values.printable import printable

from .process import WorkerProcess
from .stacks import progress_of, stack_of

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["StallActions"]

logger = logging.getLogger(__name__)


class StallActions:
    """Logs that a process has stalled, and ends it if its host says so."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ending: dict[PID, asyncio.Task[None]] = {}

    def found(self, process: WorkerProcess) -> None:
        """Act on a process that has just stalled."""
        pid, options = process.pid, process.options
        who = " ".join([pid, *map(printable, self._engine.names_of(process))])
        where = f"{process.target}, OS pid {process.os_pid}"
        logger.warning(
            "%s has stalled for %s: %s (%s); `wsrelay stack %s` shows where it is",
            *(who, show(options.stall or 0), progress_of(process), where),
            pid[1:-1].rpartition("|")[2],
            extra=self._engine.about(process),
        )
        if options.stall_action == "terminate":
            self._ending[pid] = asyncio.create_task(self._end(process))

    async def _end(self, process: WorkerProcess) -> None:
        """End it, with its stack as the traceback, unless it has gone on or ended meanwhile."""
        engine = self._engine
        try:
            try:
                stack = await stack_of(process, engine.names_of(process))
            except TimeoutError as error:
                stack = str(error)
            if engine.stalls.is_stalled(process):
                patience = show(process.options.stall or 0)
                why = f"killed: it took no message for {patience} while {process.waiting} waited"
                stalled = ExitError(ExitKind.STALLED, why, stack)
                engine.signal(process.pid, Signal.TERMINATE, because=stalled)
        finally:
            self._ending.pop(process.pid, None)
