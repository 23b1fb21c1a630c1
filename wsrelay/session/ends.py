"""How connections end: the codes and reasons of close frames, and what follows from them."""

from __future__ import annotations

import enum
from typing import Final

from wsrelay.values.message import ExitError, ExitKind, Result

__all__ = [
    "FULL",
    "LAST",
    "NODE_GONE",
    "NOT_STARTED",
    "RESTARTS",
    "SHUT_DOWN",
    "UNDECIDED",
    "UNFINISHED",
    "Closing",
    "close_for",
    "cut",
    "ended_in_order",
    "result_of",
]

UNFINISHED: Final = (1013, "too much is unfinished at this node")
SHUT_DOWN: Final = (1012, "node shuts down")
RESTARTS: Final = (1012, "target process restarts")
NODE_GONE: Final = (1012, "target's node is gone")
FULL: Final = (1013, "process host is full")
UNDECIDED: Final = (1013, "cluster cannot decide names now")
"""Code and reason of close frames after which the client should connect again."""

LAST: Final = (SHUT_DOWN, NODE_GONE)
"""Those of clients that are not joined to the next process of a name: it would not be allowed to
run, or might read again what has been read."""

NOT_STARTED: Final = (1011, "target process failed to start")
"""For a client whose process cannot be started."""


class Closing(enum.Enum):
    """Who began to close a connection."""

    CLIENT = "client"
    TARGET = "target"
    CLOSED = "closed"
    """A process, by `ws.close`, or somebody who cancelled it."""
    KILLED = "killed"
    RELAY = "relay"
    LINK = "link"
    SHUTDOWN = "shutdown"
    REFUSED = "refused"


_LONGEST_REASON: Final = 123
"""Bytes of a close reason (RFC 6455 section 5.5: a control frame's 125 minus the code's 2)."""


def ended_in_order(result: Result | None) -> bool:
    """Whether a process has not ended by itself or by force, so that the next one may serve.

    It has returned, has been cancelled, its node is gone, or (None) it has been cancelled and still
    runs.
    """
    if result is None or result.error is None:
        return True
    return result.error.kind in (ExitKind.CANCELLED, ExitKind.NODE_DOWN)


def close_for(result: Result, *, join_read: bool) -> tuple[int, str]:
    """Return the code and reason with which a target's clients are closed when it ends."""
    error = result.error
    if error is None:
        return (1000 if join_read else 1013), "target process exited"
    match error.kind:
        case ExitKind.ERROR | ExitKind.EXIT:
            how = "crashed"
        case ExitKind.LIMIT:
            limit, _, _ = error.message.partition(" of ")
            how = f"crashed ({limit})" if error.traceback else f"killed ({limit})"
        case ExitKind.NODE_DOWN:
            return NODE_GONE
        case ExitKind.START_FAILED:
            how = "failed to start"
        case ExitKind.KILLED:
            how = f"killed ({error.message})"
        case ExitKind.TERMINATED | ExitKind.CANCELLED:
            how = "killed (SIGKILL)"
        case _:
            how = f"killed ({error.kind.replace('_', ' ')})"
    return 1011, f"target process {how}"


def result_of(code: int, reason: str) -> Result:
    """Return the exit result of a connection that was closed with this code."""
    value = {"code": code, "reason": reason}
    if code in (1000, 1001, 1005) or 3000 <= code <= 4999:  # noqa: PLR2004 - `docs/semantics.md`
        return Result(value)
    kind = ExitKind.DISCONNECTED if code == 1006 else ExitKind.ERROR  # noqa: PLR2004 - RFC 6455
    return Result(value, ExitError(kind, f"closed with {code} {reason}".rstrip()))


def cut(reason: str) -> str:
    """Cut a reason to the size of a close frame, at a character boundary."""
    return reason.encode(errors="replace")[:_LONGEST_REASON].decode(errors="ignore")
