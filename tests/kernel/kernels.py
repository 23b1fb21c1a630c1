"""Kernels in any state, and the PIDs that their tests talk of."""

from __future__ import annotations

from wsrelay.kernel import Action, Kernel, ProcessState, Signal
from wsrelay.values.message import ExitError, ExitKind, Result
from wsrelay.values.pid import PID

ONE = PID("{local@small|k.1-1}")
TWO = PID("{local@small|k.1-2}")
KILLED = Result(error=ExitError(ExitKind.KILLED, "SIGKILL"))

WAITING, STARTING, RUNNING, CANCELLING, EXITED = ProcessState

# The whole life once more, so that a change of the table is made twice and on purpose.
LIFE: dict[ProcessState, dict[Signal, tuple[ProcessState, Action | None]]] = {
    WAITING: {
        Signal.DUE: (STARTING, Action.LAUNCH),
        Signal.READY: (WAITING, None),
        Signal.CANCEL: (EXITED, Action.CLEAN_UP),
        Signal.TERMINATE: (EXITED, Action.CLEAN_UP),
        Signal.START_TIMEOUT: (WAITING, None),
        Signal.STOP_TIMEOUT: (WAITING, None),
        Signal.EXIT: (EXITED, Action.CLEAN_UP),
    },
    STARTING: {
        Signal.DUE: (STARTING, None),
        Signal.READY: (RUNNING, Action.START),
        Signal.CANCEL: (CANCELLING, Action.STOP),
        Signal.TERMINATE: (STARTING, Action.KILL),
        Signal.START_TIMEOUT: (STARTING, Action.KILL),
        Signal.STOP_TIMEOUT: (STARTING, None),
        Signal.EXIT: (EXITED, Action.CLEAN_UP),
    },
    RUNNING: {
        Signal.DUE: (RUNNING, None),
        Signal.READY: (RUNNING, None),
        Signal.CANCEL: (CANCELLING, Action.STOP),
        Signal.TERMINATE: (RUNNING, Action.KILL),
        Signal.START_TIMEOUT: (RUNNING, None),
        Signal.STOP_TIMEOUT: (RUNNING, None),
        Signal.EXIT: (EXITED, Action.CLEAN_UP),
    },
    CANCELLING: {
        Signal.DUE: (CANCELLING, None),
        Signal.READY: (CANCELLING, None),
        Signal.CANCEL: (CANCELLING, None),
        Signal.TERMINATE: (CANCELLING, Action.KILL),
        Signal.START_TIMEOUT: (CANCELLING, None),
        Signal.STOP_TIMEOUT: (CANCELLING, Action.KILL),
        Signal.EXIT: (EXITED, Action.CLEAN_UP),
    },
    EXITED: {
        Signal.DUE: (EXITED, None),
        Signal.READY: (EXITED, None),
        Signal.CANCEL: (EXITED, None),
        Signal.TERMINATE: (EXITED, None),
        Signal.START_TIMEOUT: (EXITED, None),
        Signal.STOP_TIMEOUT: (EXITED, None),
        Signal.EXIT: (EXITED, None),
    },
}


def a_kernel(small: int = 2) -> Kernel:
    return Kernel({"small": small, "large": 100})
