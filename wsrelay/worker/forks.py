"""Children that user code forks: its own processes, which take no part in their parent's role.

Without this, they would write to the worker's pipe, take its messages, cancel it when they get a
SIGTERM, and report their own end as the worker's.
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
"""The signals that were blocked before the fork, by the thread that is forking."""


def watch() -> None:
    """Detach each child from its parent's role from now on (multiprocessing, `preexec_fn` too)."""
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )


def fork_worker() -> int:
    """Fork a worker: the only kind of child that continues what its parent began."""
    global _forking_worker  # noqa: PLW0603 - the fork inherits it
    _forking_worker = True
    try:
        return os.fork()
    finally:
        _forking_worker = False


def rehearse() -> None:
    """Run the code that runs around the fork of a worker, without the fork."""
    global _forking_worker  # noqa: PLW0603 - as above
    _forking_worker = True
    _before()
    _after_in_child()
    _forking_worker = False


def _before() -> None:
    """Hold early signals back: a `terminate()` right after `start()` must not be lost."""
    if not _forking_worker:
        _masks[threading.get_ident()] = signals.block()


def _after_in_parent() -> None:
    if (mask := _masks.pop(threading.get_ident(), None)) is not None:
        signals.unblock(mask)


def _after_in_child() -> None:
    if not _masks:
        return  # the fork of a worker, where each step costs it pages of its own
    if (mask := _masks.pop(threading.get_ident(), None)) is not None:
        _become_child()
        signals.unblock(mask)


def _become_child() -> None:
    global _is_child  # noqa: PLW0603 - true from here on
    _is_child = True
    signals.reset()
    if (worker := current.leave_worker()) is not None:
        worker.shut()


class ChildBoundary:
    """Lets no child that is forked inside get out: it exits here, as a script would."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """End this process if it is such a child."""
        if not _is_child:
            return
        code = 0
        if isinstance(error, LoadError):
            error = error.__context__ or error  # what user code raised
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

    `multiprocessing` would do this when the interpreter exits, which never happens in a worker.
    """
    me: Any = process.current_process()
    if folder := me._config.get("tempdir"):  # noqa: SLF001 - there is no other way to it
        import shutil  # noqa: PLC0415 - a process with such a folder has imported it already

        shutil.rmtree(folder, ignore_errors=True)


def leave(code: int) -> Never:
    """End this process now; nothing that belongs to the template (exit handlers, threads) runs."""
    flush()
    os._exit(code)


def flush() -> None:
    """Flush what was printed, if there is still somewhere to write it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # closed, or None
            pass
