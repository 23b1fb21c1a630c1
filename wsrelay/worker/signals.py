"""The signals of the template and of the workers that it forks.

A worker begins as `python script.py` does, whatever the node was started with (`nohup`): default
handlers, an empty mask. The template is not to end at a Ctrl-C that is meant for its node, but what
user code sets while it is loaded there is meant for the workers.
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
"""What the template never reacts to."""

_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, getattr(signal, "SIGXFSZ", signal.SIGPIPE))

_set: Final = _signal.signal
_get: Final = _signal.getsignal
"""Those of `signal` make enums of numbers: up to CPython 3.11 two errors are raised and caught for
each handler that is a function, which cost a worker 35 pages."""

_installed: dict[int, Handler] = {}
"""What is wsrelay's own in this process, and not for its children."""


def _held(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: unlike `SIG_IGN` this is not passed on to programs that are executed."""


def hold_back() -> None:
    """Ignore what is not for the template, before it loads user code; the inherited, too."""
    for number in signal.valid_signals():
        ignored = signal.getsignal(number) is signal.SIG_IGN
        if number in _HELD or (ignored and number not in _IGNORED_BY_PYTHON):
            signal.signal(number, _held)
            _installed[number] = _held


def release() -> dict[int, Handler]:
    """Return the handlers for workers, after user code was loaded, and hold back again.

    Those of SIGTERM and INTERRUPT are not among them unless user code has set its own: a worker
    holds them back until it knows what to do.
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
    # As `_signal` wants them: not members of an enum.
    return {
        int(number): int(handler) if isinstance(handler, int) else handler
        for number, handler in workers.items()
    }


def inherit(handlers: dict[int, Handler]) -> None:
    """Begin a worker's life with what `release` returned."""
    for number, handler in handlers.items():
        _set(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def install(number: int, handler: Handler) -> None:
    """Set a handler for a signal that was held back, unless user code has set its own."""
    if _get(number) is _held:
        _set(number, handler)
        _installed[number] = handler


def block() -> set[int]:
    """Block what is wsrelay's own, in this thread; returns what was blocked before."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, _installed))


def unblock(mask: set[int]) -> None:
    """Undo `block`."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def rehearse() -> None:
    """Do what `inherit` and `install` do in a worker, to no effect."""
    inherit(dict.fromkeys(_HELD, _held))
    install(signal.SIGTERM, _held)


def reset() -> None:
    """Take wsrelay's own handlers away: this is a child that user code has forked."""
    for number, handler in _installed.items():
        if signal.getsignal(number) in (handler, _held):
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
