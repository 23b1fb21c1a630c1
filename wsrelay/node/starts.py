"""Processes that workers start: here, or on other nodes."""

from __future__ import annotations

import asyncio
import logging
import time

from wsrelay import wire
from wsrelay.errors import HostFull, InvalidPID, WireError, WsrelayError
from wsrelay.kernel import Signal
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.values.printable import shortened
from wsrelay.wire.logrecord import fields

from .ends import ORPHANED
from .engine import Engine
from .process import SpawnOrder, WorkerProcess

__all__ = ["Starts", "not_started"]

logger = logging.getLogger(__name__)

Finished = asyncio.Future[wire.FinishedFrame]


class Starts:
    """Starts what workers spawn and run; tells them of what could not be started."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._kernel = engine.kernel
        self.execs: dict[PID, tuple[WorkerProcess, int]] = {}
        """Processes that run for an `exec`, each with its caller and the request's number."""

    def own_pid(self, process: WorkerProcess, frame: wire.SpawnFrame) -> PID:
        """Return the PID that the worker has made for a new process, here or elsewhere."""
        try:
            pid = PID(frame.pid).on(self._engine.name)
        except InvalidPID as error:  # the worker checked its form before writing it
            raise WireError(str(error)) from None
        made = self._engine.ids(process.incarnation).made(pid, on=pid.node)
        if not made or pid.host != frame.host:
            raise WireError(f"it may not give {pid} to a process of {frame.host!r}")
        return pid

    def is_here(self, pid: PID) -> bool:
        """Whether the PID is one of this node."""
        return pid.node == self._engine.name

    @staticmethod
    def order(frame: wire.SpawnFrame) -> SpawnOrder:
        """Return what a worker wants to be started."""
        return SpawnOrder(frame.target, frame.code, frame.plain, frame.label)

    def launch(self, process: WorkerProcess, pid: PID, frame: wire.SpawnFrame) -> PID:
        """Start a process here; raises as `Engine.launch` does."""
        return self._engine.launch(
            pid,
            self.order(frame),
            None,
            process.pid,
            frame.monitored,
            frame.linked,
        )

    def spawn(self, process: WorkerProcess, frame: wire.SpawnFrame) -> None:
        """Start a process; if it cannot be started, that is how it ends."""
        pid = self.own_pid(process, frame)
        try:
            if self.is_here(pid):
                self.launch(process, pid, frame)
            else:
                self._spawn_elsewhere(process, pid, frame)
        except (WsrelayError, ValueError) as error:
            self.log_refusal(process.pid, pid, self.order(frame).shown, not_started(error))
            self.failed(process, frame, error)

    def _spawn_elsewhere(self, process: WorkerProcess, pid: PID, frame: wire.SpawnFrame) -> None:
        elsewhere, kernel = self._engine.elsewhere, self._kernel
        kernel.relations.check(process.pid, pid, monitor=frame.monitored, link=frame.linked)
        elsewhere.spawn(process.pid, pid, frame)
        kernel.relate(process.pid, pid, monitored=frame.monitored, linked=frame.linked)

    def failed(self, process: WorkerProcess, frame: wire.SpawnFrame, error: Exception) -> None:
        """Tell the parent that a process was not started."""
        pid, end = self.own_pid(process, frame), not_started(error)
        monitored, linked = frame.monitored, frame.linked
        effects = self._kernel.spawn_failed(
            pid, end, process.pid, monitored=monitored, linked=linked
        )
        self._engine.execute(effects)

    def log_refusal(self, parent: PID, pid: PID, target: str | None, end: ExitError) -> None:
        """Log that a process was not started, unless that has just been logged many times.

        `parent` is who wanted it, a process or another node.
        """
        unlogged = self._engine.mistakes.again(parent, time.monotonic())
        if unlogged is not None:
            about = self._engine.about_pid(pid) | fields(target=target, exit=end.kind.value)
            more = f" (nor were {unlogged} others that {parent} spawned)" if unlogged else ""
            logger.error("%s was not started: %s%s", pid, shortened(end.message), more, extra=about)

    def exec(self, process: WorkerProcess, frame: wire.ExecFrame) -> Finished | None:
        """Start a process, the end of which is the answer; that of one elsewhere is a future."""
        pid = self.own_pid(process, frame.spawn)
        try:
            if self.is_here(pid):
                self.execs[self.launch(process, pid, frame.spawn)] = process, frame.ref
                return None
            future = self._engine.elsewhere.exec(process.pid, frame.ref, pid, frame.spawn)
        except (WsrelayError, ValueError) as error:
            result = Result(error=not_started(error))
            process.pipe.post(wire.FinishedFrame(frame.ref, wire.PackedResult.of(result)))
            return None
        self.execs[pid] = process, frame.ref
        future.add_done_callback(lambda _: self.execs.pop(pid, None))
        return future

    def awaits(self, caller: PID, pid: PID | None) -> bool:
        """Whether the process was started by an `exec` of the caller that still waits."""
        waiting = None if pid is None else self.execs.get(pid)
        return waiting is not None and waiting[0].pid == caller

    def ended(self, process: WorkerProcess, result: Result) -> None:
        """Answer the `exec` that a process ran for, and end what it ran by `exec` itself.

        What that ran elsewhere is ended by the end of its request.
        """
        if (waiting := self.execs.pop(process.pid, None)) is not None:
            caller, ref = waiting
            caller.pipe.post(wire.FinishedFrame(ref, wire.PackedResult.of(result)))
        for pid, (caller, _) in list(self.execs.items()):
            if caller is process and self.is_here(pid):
                self._engine.signal(pid, Signal.TERMINATE, ORPHANED, sender=process.pid)


def not_started(error: Exception) -> ExitError:
    """Return the end of a process that an error has kept from starting."""
    kind = ExitKind.HOST_FULL if isinstance(error, HostFull) else ExitKind.START_FAILED
    return ExitError(kind, str(error))
