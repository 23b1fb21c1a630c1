"""A client on its way to a process."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from wsrelay.session.ends import ended_in_order
from wsrelay.values.message import ExitKind, Result
from wsrelay.values.pid import PID

from .process import WorkerProcess
from .target import RelayTarget

__all__ = ["Arrival", "NoTarget"]


class NoTarget(Exception):  # noqa: N818 - reads as a sentence
    """There is no process for a client; the text says why."""

    def __init__(
        self,
        problem: str,
        result: Result | None = None,
        *,
        is_missing: bool = True,
        is_over: bool = False,
        is_crowded: bool = False,
    ) -> None:
        super().__init__(problem)
        self.result = result
        """How the process has ended; None if it has not yet, or there was none."""
        self.is_missing = is_missing
        """Whether there is nothing of that name that could run, which is a mistake."""
        self.is_over = is_over
        """Whether the process has returned or been cancelled: the next one may serve."""
        self.is_crowded = is_crowded
        """Whether it only takes no more clients for now."""

    @classmethod
    def of(cls, process: WorkerProcess, problem: str) -> NoTarget:
        """Return why a process that there was cannot be a target."""
        return cls(
            problem,
            process.result,
            is_missing=_is_missing(process),
            is_over=ended_in_order(process.result),
        )


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

    def __init__(self, target: RelayTarget) -> None:
        self._target: RelayTarget | None = target
        self.pid: PID = target.pid
        target.arrivals += 1
        target.occupied()

    def over(self) -> None:
        """Note that the client is bound to the process, or will not come."""
        target, self._target = self._target, None
        if target is not None:
            target.arrivals -= 1
            target.left()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.over()
