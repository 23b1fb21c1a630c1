"""A process's life, in one table.

A worker begins in STARTING, or in WAITING if the process before it under its exclusive name has not
ended; a connection begins in RUNNING, since its client is already connected. DUE ends the waiting.
READY comes once; CANCEL, TERMINATE and the timeouts may come late or twice; EXIT is reported by the
operating system (or the transport) and ends everything. Nothing runs a process that waits, so it
ends by the signal itself.
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["TABLE", "Action", "ProcessState", "Signal"]


class ProcessState(enum.Enum):
    """The stage of a process's life."""

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLING = "cancelling"
    EXITED = "exited"


class Signal(enum.Enum):
    """What can happen to a process."""

    DUE = "due"
    READY = "ready"
    CANCEL = "cancel"
    TERMINATE = "terminate"
    START_TIMEOUT = "start timeout"
    STOP_TIMEOUT = "stop timeout"
    EXIT = "exit"


class Action(enum.Enum):
    """What a transition asks for."""

    LAUNCH = "take a place in the host and start the worker"
    START = "notify those who wait for the start"
    STOP = "release the names, close the inbox, notify the process, arm the stop timeout"
    KILL = "end it at once"
    CLEAN_UP = "release everything and notify everyone"


Row = dict[Signal, tuple[ProcessState, Action | None]]

TABLE: Final[dict[ProcessState, Row]] = {
    ProcessState.WAITING: {
        Signal.DUE: (ProcessState.STARTING, Action.LAUNCH),
        Signal.READY: (ProcessState.WAITING, None),
        Signal.CANCEL: (ProcessState.EXITED, Action.CLEAN_UP),
        Signal.TERMINATE: (ProcessState.EXITED, Action.CLEAN_UP),
        Signal.START_TIMEOUT: (ProcessState.WAITING, None),
        Signal.STOP_TIMEOUT: (ProcessState.WAITING, None),
        Signal.EXIT: (ProcessState.EXITED, Action.CLEAN_UP),
    },
    ProcessState.STARTING: {
        Signal.DUE: (ProcessState.STARTING, None),
        Signal.READY: (ProcessState.RUNNING, Action.START),
        Signal.CANCEL: (ProcessState.CANCELLING, Action.STOP),
        Signal.TERMINATE: (ProcessState.STARTING, Action.KILL),
        Signal.START_TIMEOUT: (ProcessState.STARTING, Action.KILL),
        Signal.STOP_TIMEOUT: (ProcessState.STARTING, None),
        Signal.EXIT: (ProcessState.EXITED, Action.CLEAN_UP),
    },
    ProcessState.RUNNING: {
        Signal.DUE: (ProcessState.RUNNING, None),
        Signal.READY: (ProcessState.RUNNING, None),
        Signal.CANCEL: (ProcessState.CANCELLING, Action.STOP),
        Signal.TERMINATE: (ProcessState.RUNNING, Action.KILL),
        Signal.START_TIMEOUT: (ProcessState.RUNNING, None),
        Signal.STOP_TIMEOUT: (ProcessState.RUNNING, None),
        Signal.EXIT: (ProcessState.EXITED, Action.CLEAN_UP),
    },
    ProcessState.CANCELLING: {
        Signal.DUE: (ProcessState.CANCELLING, None),
        Signal.READY: (ProcessState.CANCELLING, None),
        Signal.CANCEL: (ProcessState.CANCELLING, None),
        Signal.TERMINATE: (ProcessState.CANCELLING, Action.KILL),
        Signal.START_TIMEOUT: (ProcessState.CANCELLING, None),
        Signal.STOP_TIMEOUT: (ProcessState.CANCELLING, Action.KILL),
        Signal.EXIT: (ProcessState.EXITED, Action.CLEAN_UP),
    },
    ProcessState.EXITED: dict.fromkeys(Signal, (ProcessState.EXITED, None)),
}
