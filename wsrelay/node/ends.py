"""The processes and connections that ended last, and what has ended them.

Nobody may ever ask, so an end only costs its record; what `EndInfo` tells is made when it is read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from wsrelay.kernel import Signal
from wsrelay.session.ends import Closing
from wsrelay.values.message import EMPTY, ExitError, ExitKind, Result
from wsrelay.values.pid import PID
from wsrelay.values.printable import without_middle

from .info import ConnectionEndInfo, ConnectionInfo, EndInfo

if TYPE_CHECKING:
    from .process import WorkerProcess

__all__ = ["MOST_ENDS", "ORPHANED", "EndRequest", "Ends"]

MOST_ENDS: Final = 1_000
"""Ends that are kept of each kind."""

_MOST_TEXT: Final = 8 * 1024 * 1024
"""Characters of all ends of processes together; those that ended first are forgotten beyond it."""

_TRACEBACK: Final = 16 * 1024
_MESSAGE: Final = 1024
_NAMES: Final = 10
"""Characters of a traceback and of a message, and names, that are kept of one end."""

ORPHANED: Final = "its caller has ended"
"""The reason with which a process is killed that ran for an `exec` of one that has ended."""

_HOW: Final = {
    ExitKind.EXIT: "exited",
    ExitKind.KILLED: "signal",
    ExitKind.LIMIT: "limit",
    ExitKind.MAILBOX_OVERFLOW: "limit",
    ExitKind.LINK_DOWN: "link",
}

_ASKED: Final = (None, ExitKind.CANCELLED, ExitKind.TERMINATED)
"""The kinds of the ends that somebody may have asked for."""


class EndRequest(Struct, frozen=True, gc=False):
    """A request to end: a signal, from whom (empty: from the node itself), with which reason."""

    signal: Signal
    by: str
    reason: str


class _End(Struct, frozen=True, gc=False):
    """The end of a process as it is kept; `at` and `lived` are in seconds, `size` in characters."""

    pid: PID
    names: list[str]
    target: str
    os_pid: int | None
    parent: PID | None
    at: float
    lived: float
    error: ExitError | None
    asked: EndRequest | None
    drains: bool
    clients: int
    size: int


class Ends:
    """The last thousand ends of processes and of connections.

    `watchers` are called, by PID, when that process or connection has ended, and then forgotten.
    """

    def __init__(self) -> None:
        self.watchers: dict[PID, list[Callable[[], None]]] = {}
        self._processes: deque[_End] = deque()
        self._connections: deque[ConnectionEndInfo] = deque(maxlen=MOST_ENDS)
        self._ended = self._closed = 0
        """How many there have been."""
        self._text = 0

    def add(self, process: WorkerProcess, result: Result) -> None:
        """Keep the end of a process."""
        error, kept, names = result.error, self._processes, process.names
        if len(names) > _NAMES:
            names = sorted(names)[:_NAMES]
        size = len(process.target) + sum(map(len, names))
        if error is not None:
            text = error.traceback
            if len(error.message) > _MESSAGE or (text is not None and len(text) > _TRACEBACK):
                error = _bounded(error)
            size += len(error.message) + len(error.traceback or "")
        end = _End(
            process.pid,
            names,
            process.target,
            process.os_pid,
            process.parent,
            time.time(),
            time.monotonic() - process.started,
            error,
            process.asked,
            process.drains,
            len(process.clients),
            size,
        )
        kept.append(end)
        self._ended += 1
        self._text += size
        while len(kept) > MOST_ENDS or self._text > _MOST_TEXT:
            self._text -= kept.popleft().size
        if self.watchers and process.pid in self.watchers:
            self._tell(process.pid)

    def add_connection(
        self,
        pid: PID,
        connection: ConnectionInfo,
        names: Collection[str],
        closing: tuple[int, str, Closing, str],
    ) -> None:
        """Keep the end of a connection: what was known of it last, and how it was closed.

        `closing` is code, reason, and what began to close it, with `by` of `ConnectionEndInfo`.
        """
        self._closed += 1
        code, reason, how, by = closing
        end = ConnectionEndInfo(
            number=self._closed,
            ended=time.time(),
            code=code,
            reason=reason,
            how=how.value,
            by=str(by) or None,
            names=sorted(names)[:_NAMES],
            connection=connection,
        )
        self._connections.append(end)
        if self.watchers and pid in self.watchers:
            self._tell(pid)

    def _tell(self, pid: PID) -> None:
        for told in self.watchers.pop(pid):
            told()

    # What operators ask

    def processes(self, after: int = 0) -> Iterator[EndInfo]:
        """Yield the ends of processes that are kept, after the one with that number."""
        first = self._ended - len(self._processes) + 1
        for number, end in enumerate(list(self._processes), first):
            if number > after:
                yield _info(number, end)

    def connections(self, after: int = 0) -> Iterator[ConnectionEndInfo]:
        """Yield the ends of connections that are kept, after the one with that number."""
        return (end for end in list(self._connections) if end.number > after)


def _bounded(error: ExitError) -> ExitError:
    text = error.traceback
    kept = None if text is None else without_middle(text, _TRACEBACK)
    return ExitError(error.kind, without_middle(error.message, _MESSAGE), kept)


def _info(number: int, end: _End) -> EndInfo:
    error, asked = end.error, end.asked
    return EndInfo(
        number=number,
        pid=str(end.pid),
        names=end.names,
        target=end.target,
        host=end.pid.host,
        os_pid=end.os_pid,
        parent=None if end.parent is None else str(end.parent),
        started=end.at - end.lived,
        ended=end.at,
        kind="returned" if error is None else error.kind.value,
        how=_how(end),
        by=None if asked is None else str(asked.by) or None,
        reason="" if asked is None else asked.reason,
        message="" if error is None else error.message,
        traceback=None if error is None else error.traceback,
        clients=end.clients,
    )


def _how(end: _End) -> str:
    """Return what has ended it, as `EndInfo` has it."""
    error, asked = end.error, end.asked
    kind = None if error is None else error.kind
    if error is not None and kind not in _ASKED:
        if error.kind is ExitKind.ERROR:
            return "raised" if error.traceback else "node"
        return _HOW.get(error.kind, error.kind.value)
    if asked is None:
        return "returned" if error is None else "node"
    if asked.reason == ORPHANED:
        return "parent"
    if not asked.by:
        return "empty" if asked.reason == EMPTY else "shutdown" if end.drains else "node"
    return "terminated" if asked.signal is Signal.TERMINATE else "cancelled"
