"""Makes `multiprocessing` work in a handler as it does in `python script.py`.

The template is itself a child of multiprocessing, which shows in whatever it forks; and workers end
as no process of multiprocessing does: by `os._exit`, and together with their process group.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import stat
from collections.abc import Collection, Sequence
from multiprocessing import process, resource_tracker, spawn, util
from typing import Any, Final

from wsrelay.values import parentage

__all__ = ["enter_template", "enter_worker", "leave_sentinel", "leave_tracker"]

_STANDARD_ERROR: Final = 2
_TRACKER: Final = "multiprocessing.resource_tracker"

_tracker: Any = resource_tracker._resource_tracker  # noqa: SLF001 - there is no other way to it
_process: Any = process
_util: Any = util
_spawn: Any = spawn

_spawn_child = _util.spawnv_passfds
_preparation_data = _spawn.get_preparation_data


def enter_template() -> None:
    """Stop being a child of multiprocessing, before user code is loaded.

    The start method is the platform's again, and can still be chosen. The node's resource tracker
    is let go of, since workers could have it remove the shared memory of others.
    """
    leave_tracker()
    parent = multiprocessing.parent_process()
    if parent is not None:
        os.close(parent.sentinel)
    multiprocessing.set_start_method(None, force=True)
    _process._parent_process = None  # noqa: SLF001
    me: Any = process.current_process()
    me._name, me._identity, me._parent_pid = "MainProcess", (), None  # noqa: SLF001
    _util.spawnv_passfds = _start
    _spawn.get_preparation_data = _prepare


def enter_worker() -> None:
    """Become a main process, with nothing of what the template has begun."""
    leave_tracker()  # it would keep what belongs to this worker until the template ends
    me: Any = process.current_process()
    me._config.pop("tempdir", None)  # noqa: SLF001 - the template's, which removes it
    _util._finalizer_registry.clear()  # noqa: SLF001 - as multiprocessing's own children do
    if _util._afterfork_registry.data:  # noqa: SLF001 - even if empty, the call costs 20 pages
        _util._run_after_forkers()  # noqa: SLF001


def leave_tracker() -> None:
    """Let go of the resource tracker: a process that needs one starts its own."""
    if _tracker._fd is not None:  # noqa: SLF001
        os.close(_tracker._fd)  # noqa: SLF001
        _tracker._fd = _tracker._pid = None  # noqa: SLF001


def leave_sentinel(*, keep: Collection[int]) -> None:
    """Close the pipe whose closing tells the node's multiprocessing that its child has ended.

    The child inherits it without being given its number: it is the only pipe open for writing,
    apart from the standard streams and `keep`, before any user code has run.
    """
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - these are not files
        with contextlib.suppress(OSError):  # the one that listed the others is closed by now
            if (
                (descriptor := int(name)) > _STANDARD_ERROR
                and descriptor not in keep
                and stat.S_ISFIFO(os.fstat(descriptor).st_mode)
                and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
            ):
                os.close(descriptor)


def _start(path: bytes, args: Sequence[str], passfds: Sequence[int]) -> int:
    """Start a program for multiprocessing: a resource tracker in a session of its own.

    If it were killed with its worker's process group, it could not remove what the worker has left.
    It ends when the last process that can reach it has ended.
    """
    if _TRACKER not in args[-1]:
        pid: int = _spawn_child(path, args, passfds)
        return pid
    import subprocess  # noqa: PLC0415 - unlike the call above, it can start a session

    tracker = subprocess.Popen(  # noqa: S603 - what multiprocessing asks for
        args,
        executable=path,
        pass_fds=passfds,
        restore_signals=False,
        start_new_session=True,
    )
    tracker.returncode = 0  # multiprocessing waits for it, not this object
    return tracker.pid


def _prepare(name: str) -> dict[str, Any]:
    """Return what a new interpreter is given before it unpickles anything of the handler's."""
    data: dict[str, Any] = _preparation_data(name)
    return {**data, "wsrelay": parentage.Origin()}
