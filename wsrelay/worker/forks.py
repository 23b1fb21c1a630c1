"""Children that user code forks: processes of its own, with no part in what is their parent's.

Without this they would write into the worker's pipe, take its mail, cancel it when they get a
SIGTERM, and tell its end as theirs.
"""

from __future__ import annotations

import os
import sys
import threading
from multiprocessing import process
from typing import Any, Never

from wsrelay.values import current

from . import signals
from .load import LoadError

__all__ = ["ChildBoundary", "exit_code", "flush", "fork_worker", "leave", "watch"]

_forking_worker = False
_is_child = False
_masks: dict[int, set[int]] = {}
"""The signals that a thread in the middle of a fork had blocked before."""


def watch() -> None:
    """Make each child what it should be, from now on (multiprocessing and `preexec_fn` too)."""
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )


def fork_worker() -> int:
    """Fork the one child that goes on with what its parent began."""
    global _forking_worker  # noqa: PLW0603 - what is forked inherits it
    _forking_worker = True
    try:
        return os.fork()
    finally:
        _forking_worker = False


def rehearse() -> None:
    """Do what a fork of a worker calls, without the fork."""
    global _forking_worker  # noqa: PLW0603 - as above
    _forking_worker = True
    _before()
    _after_in_child()
    _forking_worker = False


def _before() -> None:
    """Let a signal that comes early wait: `terminate()` right after `start()` is not to be lost."""
    if not _forking_worker:
        _masks[threading.get_ident()] = signals.block()


def _after_in_parent() -> None:
    if (mask := _masks.pop(threading.get_ident(), None)) is not None:
        signals.unblock(mask)


def _after_in_child() -> None:
    if not _masks:
        return  # a worker's own fork, in which each step costs it pages of its own
    if (mask := _masks.pop(threading.get_ident(), None)) is not None:
        _become_child()
        signals.unblock(mask)


def _become_child() -> None:
    global _is_child  # noqa: PLW0603 - it is so from here on
    _is_child = True
    signals.reset()
    if (worker := current.leave_worker()) is not None:
        worker.shut()


class ChildBoundary:
    """Lets no child that is forked inside come out: it ends here, as a script would end."""

    def __enter__(self) -> None:
        """Nothing is to be done."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """End this process if it is such a child."""
        if not _is_child:
            return
        code = 0
        if isinstance(error, LoadError):
            error = error.__context__ or error  # what the user's code has raised
        if isinstance(error, SystemExit):
            code = exit_code(error)
        elif error is not None:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        leave(code)


def exit_code(leaving: SystemExit) -> int:
    """Return the exit code that `sys.exit` was given."""
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF
    print(leaving.code, file=sys.stderr)  # noqa: T201 - as the interpreter does
    return 1


def remove_sockets() -> None:
    """Remove the folder with the sockets of this worker's own managers and fork servers, if any.

    `multiprocessing` would do it at the exit of the interpreter, which a worker never comes to.
    """
    me: Any = process.current_process()
    if folder := me._config.get("tempdir"):  # noqa: SLF001 - there is no other way to it
        import shutil  # noqa: PLC0415 - who has such a folder has imported it

        shutil.rmtree(folder, ignore_errors=True)


def leave(code: int) -> Never:
    """End this process now; nothing of the template's own life (exit handlers, threads) is run."""
    flush()
    os._exit(code)


def flush() -> None:
    """Write out what was printed, as far as there is somewhere to write it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # closed, or None
            pass
