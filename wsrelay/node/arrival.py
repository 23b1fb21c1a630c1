"""A client on its way to a process."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from wsrelay.session.machine import ended_in_order
from wsrelay.values.message import ExitKind
from wsrelay.values.pid import PID

from .process import WorkerProcess

__all__ = ["Arrival", "NoTarget"]


class NoTarget(Exception):  # noqa: N818 - reads as a sentence
    """There is no process for a client; the text says why."""

    def __init__(self, problem: str, process: WorkerProcess | None = None) -> None:
        super().__init__(problem)
        self.result = None if process is None else process.result
        """How the process has ended; None if it has not yet, or there was none."""
        self.is_missing = process is None or _is_missing(process)
        """Whether there is nothing of that name that could run, which is a mistake."""
        self.is_over = process is not None and ended_in_order(process.result)
        """Whether the process has returned or been cancelled: the next one may serve."""


def _is_missing(process: WorkerProcess) -> bool:
    """Whether its code was not found, as opposed to code that raised or took too long."""
    error = None if process.result is None else process.result.error
    return (
        error is not None
        and error.kind is ExitKind.START_FAILED
        and error.traceback is None
        and process.launched
        and process.incarnation.done is not None
    )


class Arrival:
    """A client on its way to a process, which until `over` counts as one of the process's clients.

    `over` may be called again.
    """

    def __init__(self, process: WorkerProcess) -> None:
        self._process: WorkerProcess | None = process
        self.pid: PID = process.pid
        process.arrivals += 1
        process.occupied()

    def over(self) -> None:
        """Note that the client is bound to the process, or will not come."""
        process, self._process = self._process, None
        if process is not None:
            process.arrivals -= 1
            process.left()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.over()
