"""A process's life, in one table.

A worker begins in STARTING, a connection (its client is there already) in RUNNING. READY comes
once; CANCEL, TERMINATE and the deadlines may come late or twice; EXIT is the operating system's
word (or the transport's) and ends everything.
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["TABLE", "Action", "Signal", "State"]


class State(enum.Enum):
    """Where a process is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    EXITED = "exited"


class Signal(enum.Enum):
    """What can happen to a process."""

    READY = "ready"
    CANCEL = "cancel"
    TERMINATE = "terminate"
    START_TIMEOUT = "start timeout"
    STOP_TIMEOUT = "stop timeout"
    EXIT = "exit"


class Action(enum.Enum):
    """What a transition asks for."""

    START = "tell those who wait for the start"
    STOP = "release the names, close the inbox, tell the process, arm the stop timeout"
    KILL = "end it at once"
    BURY = "release everything and tell everyone"


Row = dict[Signal, tuple[State, Action | None]]

TABLE: Final[dict[State, Row]] = {
    State.STARTING: {
        Signal.READY: (State.RUNNING, Action.START),
        Signal.CANCEL: (State.CANCELLING, Action.STOP),
        Signal.TERMINATE: (State.STARTING, Action.KILL),
        Signal.START_TIMEOUT: (State.STARTING, Action.KILL),
        Signal.STOP_TIMEOUT: (State.STARTING, None),
        Signal.EXIT: (State.EXITED, Action.BURY),
    },
    State.RUNNING: {
        Signal.READY: (State.RUNNING, None),
        Signal.CANCEL: (State.CANCELLING, Action.STOP),
        Signal.TERMINATE: (State.RUNNING, Action.KILL),
        Signal.START_TIMEOUT: (State.RUNNING, None),
        Signal.STOP_TIMEOUT: (State.RUNNING, None),
        Signal.EXIT: (State.EXITED, Action.BURY),
    },
    State.CANCELLING: {
        Signal.READY: (State.CANCELLING, None),
        Signal.CANCEL: (State.CANCELLING, None),
        Signal.TERMINATE: (State.CANCELLING, Action.KILL),
        Signal.START_TIMEOUT: (State.CANCELLING, None),
        Signal.STOP_TIMEOUT: (State.CANCELLING, Action.KILL),
        Signal.EXIT: (State.EXITED, Action.BURY),
    },
    State.EXITED: dict.fromkeys(Signal, (State.EXITED, None)),
}
