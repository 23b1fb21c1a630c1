"""Who is stopped when the node's lease is not renewed in time, and what that means here.

Their hosts' guardians stop them (`template/guardian.py`). Here they are told whom and when, and the
timers of who is stopped stand still.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from wsrelay.values.pid import PID

from .endpoint import Endpoint
from .process import WorkerProcess
from .templates import Templates

__all__ = ["Fencing"]

logger = logging.getLogger(__name__)


class Fencing:
    """The fenced processes of a node, and the deadline until which they run.

    `name` is the node's, for the log.
    """

    def __init__(
        self,
        name: str,
        templates: Templates,
        processes: Mapping[PID, WorkerProcess],
        endpoints: Mapping[PID, Endpoint],
    ) -> None:
        self.is_cluster_name: Callable[[str], bool] = lambda _: False
        """Whether a process that is started under that name is fenced from the beginning."""
        self.frozen = False
        """Whether the fenced processes are stopped."""
        self._name = name
        self._templates = templates
        self._processes = processes
        self._endpoints = endpoints
        self._deadline: float | None = None
        self._freeze: asyncio.TimerHandle | None = None

    def begun(self, process: WorkerProcess) -> None:
        """Note a new process that is fenced from the beginning."""
        if self.frozen:
            process.freeze(asyncio.get_running_loop().time())

    def set_deadline(self, monotonic_ns: int) -> None:
        """Set the time from which on fenced processes are stopped, until a later one is set.

        Their hosts' guardians do that, so it is done even if this process hangs or is stopped.
        """
        self._templates.freeze_deadline(monotonic_ns)
        loop = asyncio.get_running_loop()
        if self._deadline is not None and self._deadline <= loop.time():
            self._frozen(self._deadline)  # it has passed while this loop was stopped
        self.forget_deadline()
        self._deadline = due = monotonic_ns / 1e9
        if due > loop.time():
            self._thaw()
            self._freeze = loop.call_at(due, self._frozen, due)
        else:
            self._frozen(loop.time())

    def forget_deadline(self) -> None:
        """Do nothing when the deadline passes; the guardians go on without this process."""
        if self._freeze is not None:
            self._freeze.cancel()
        self._freeze = self._deadline = None

    def _frozen(self, since: float) -> None:
        """Know that the fenced processes are stopped since then: let their timers stand still."""
        if self.frozen:
            return
        self.frozen = True
        if fenced := self._fenced():
            self._warn_of(fenced, "stopped until the node's lease is renewed")
        for process in fenced:
            process.freeze(since)

    def _thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            if fenced := self._fenced():
                self._warn_of(fenced, "running again")
            for process in fenced:
                process.thaw()

    def _fenced(self) -> list[WorkerProcess]:
        return [process for process in self._processes.values() if process.fenced]

    def _warn_of(self, fenced: list[WorkerProcess], what: str) -> None:
        who = f"{len(fenced)} processes are" if len(fenced) > 1 else f"{fenced[0].pid} is"
        logger.warning("node %s: %s %s", self._name, who, what)

    async def fence(self, pid: PID) -> bool:
        """Have a worker stopped when the deadline passes; returns whether it is alive.

        When this returns True nothing that happens to this process prevents that any more. A
        connection is run by the node itself, so there is nothing to be done for it.
        """
        if (process := self._processes.get(pid)) is None:
            return pid in self._endpoints
        process.fenced = True
        if self.frozen:
            process.freeze(asyncio.get_running_loop().time())
        if process.launched and not await process.incarnation.fence():
            return False
        return pid in self._processes

    def unfence(self, pid: PID) -> None:
        """Undo `fence`; has no effect on a process that is not fenced, or has ended."""
        if (process := self._processes.get(pid)) is None or not process.fenced:
            return
        process.fenced = False
        process.thaw()
        if process.launched:
            process.incarnation.unfence()
