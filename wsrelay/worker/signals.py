"""The signals of the template and of the workers that it forks.

A worker begins as `python script.py` does, whatever the node was started with (`nohup`): default
handlers, an empty mask. The template must not end at a Ctrl-C that is meant for its node, but the
handlers that user code sets while it is loaded there are meant for the workers.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from wsrelay import wire

__all__ = ["block", "hold_back", "inherit", "install", "rehearse", "release", "reset", "unblock"]

Handler = Callable[[int, FrameType | None], Any] | int | None

_HELD: Final = (signal.SIGINT, signal.SIGTERM, wire.INTERRUPT)
"""Signals that the template never reacts to."""

_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, getattr(signal, "SIGXFSZ", signal.SIGPIPE))

_set: Final = _signal.signal
_get: Final = _signal.getsignal
"""Those of `signal` turn numbers into enums: up to CPython 3.11, two errors are raised and caught
for each handler that is a function, which cost a worker 35 pages."""

_installed: dict[int, Handler] = {}
"""Handlers that are wsrelay's own in this process, and not meant for its children."""


def _held(_number: int, _frame: FrameType | None) -> None:
    """Do nothing; unlike `SIG_IGN`, this is not inherited by programs that are executed."""


def hold_back() -> None:
    """Before user code is loaded, ignore what is not for the template or was ignored already."""
    for number in signal.valid_signals():
        ignored = signal.getsignal(number) is signal.SIG_IGN
        if number in _HELD or (ignored and number not in _IGNORED_BY_PYTHON):
            signal.signal(number, _held)
            _installed[number] = _held


def release() -> dict[int, Handler]:
    """Return the handlers for workers after user code was loaded, and hold signals back again.

    There is none for INTERRUPT, and one for SIGTERM only if user code has set its own: a worker
    holds these two back until it knows what to do.
    """
    workers: dict[int, Handler] = {signal.SIGCHLD: signal.getsignal(signal.SIGCHLD)}
    for number in list(_installed):
        handler = signal.getsignal(number)
        if handler is not _held:
            workers[number] = handler
            signal.signal(number, _held)
        elif number == signal.SIGINT:
            workers[number] = signal.default_int_handler
        elif number not in _HELD:
            workers[number] = signal.SIG_DFL
    workers.pop(wire.INTERRUPT, None)
    # As `_signal` expects them: not members of an enum.
    return {
        int(number): int(handler) if isinstance(handler, int) else handler
        for number, handler in workers.items()
    }


def inherit(handlers: dict[int, Handler]) -> None:
    """Set the handlers that `release` returned in a new worker, and unblock all signals."""
    for number, handler in handlers.items():
        _set(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def install(number: int, handler: Handler) -> None:
    """Set a handler for a signal that was held back, unless user code has set its own."""
    if _get(number) is _held:
        _set(number, handler)
        _installed[number] = handler


def block() -> set[int]:
    """Block, in this thread, the signals that wsrelay handles; return those blocked before."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, _installed))


def unblock(mask: set[int]) -> None:
    """Undo `block`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def rehearse() -> None:
    """Run the code of `inherit` and `install` as a worker would, without effect."""
    inherit(dict.fromkeys(_HELD, _held))
    install(signal.SIGTERM, _held)


def reset() -> None:
    """Remove wsrelay's own handlers: this is a child that user code has forked."""
    for number, handler in _installed.items():
        if signal.getsignal(number) in (handler, _held):
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
