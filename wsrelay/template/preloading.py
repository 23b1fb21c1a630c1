"""Load users' code into the template, and check what it leaves behind."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import logging
import os
import re
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

from wsrelay import worker
from wsrelay.confinement.options import HostOptions
from wsrelay.errors import HostFailed
from wsrelay.values import scripts, targets

from . import crashes

__all__ = ["preload", "why_lost"]

logger = logging.getLogger(__name__)

_THREAD_LIMITS: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)

_LONGEST: Final = 1e6
"""Seconds; the longest timeout that is passed to `faulthandler`."""

_PATIENCE: Final = 1.0
"""Seconds to wait for a thread that has nothing left to do to disappear."""

_PAUSE: Final = 0.0002

_FRAME: Final = re.compile(r'  File "(.*)", line (\d+) in (.*)')
_LOADER: Final = worker.load.__file__

_SQLITE: Final = b"SQLite format 3"

_KERNEL_OBJECTS: Final = {
    "eventpoll": "an epoll descriptor",
    "inotify": "an inotify descriptor",
    "fanotify": "a fanotify descriptor",
    "io_uring": "an io_uring",
    "timerfd": "a timer's descriptor",
}


def preload(options: HostOptions, declared: Iterable[targets.Target], report: Connection) -> None:
    """Load modules and the functions of targets; raises `worker.LoadError`.

    Warns about what the forks would share or lack. If it takes longer than the start timeout,
    this process ends, and `report` holds the stack: see `why_lost`.
    """
    # Libraries that start a thread pool at import would leave dead threads in every fork.
    limited = [name for name in _THREAD_LIMITS if name not in os.environ]
    os.environ.update(dict.fromkeys(limited, "1"))
    bounded = _bounded(options.start_timeout, report)
    # ChildBoundary is innermost: in a child that user code forks, faulthandler's thread is gone,
    # and cancelling it would wait forever.
    with worker.generators.watched(), bounded, worker.forks.ChildBoundary():
        for name in options.preload:
            with _warned_of_what_stays_open(name):
                worker.load_module(name)
        # Modules come first: what they import without a script's folder is the same for all.
        for target in sorted(declared, key=lambda target: target.script is not None):
            with _warned_of_what_stays_open(target.script or str(target.module)):
                worker.load_target(target)
        scripts.rest()
    for name in limited:
        os.environ.pop(name, None)
    _warn_of_threads()


def _warn_of_threads() -> None:
    names = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    if not names and (native := len(_native_threads()) - 1) > 0:
        names = [f"{native} of a native library"]
    if names:
        logger.warning("preloading left threads behind (%s): workers lack them", ", ".join(names))


def _native_threads() -> set[str]:
    """Return the ids of all threads of this process (Linux; none elsewhere, or without memory)."""
    try:
        return set(os.listdir("/proc/self/task")) if sys.platform == "linux" else set()  # noqa: PTH208 - these are no files
    except OSError:
        return set()


# What stays open


@contextlib.contextmanager
def _warned_of_what_stays_open(place: str) -> Iterator[None]:
    before = _descriptors()
    yield
    worker.enable_own_loggers()
    opened = [
        f"{what} ({name})" if (name := _name_of(descriptor)) else what
        for descriptor in sorted(_descriptors() - before)
        if (what := _shared_thing(descriptor)) is not None
    ]
    if opened:
        logger.warning(
            "%s left open at its top level: %s. All processes share it, and what one of them reads "
            "the others miss: open it in the handler",
            place,
            ", ".join(opened),
        )


def _descriptors() -> set[int]:
    try:
        listed = [int(name) for name in os.listdir("/dev/fd")]  # noqa: PTH208 - these are no files
    except OSError:
        return set()
    return {descriptor for descriptor in listed if _is_open(descriptor)}


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:  # the descriptor that listed the others
        return False
    return True


def _shared_thing(descriptor: int) -> str | None:
    """Describe a descriptor that two processes cannot use at once; None for any other."""
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISSOCK(mode):
            with socket.socket(fileno=os.dup(descriptor)) as found:
                return _socket(found)
        if stat.S_ISREG(mode):
            is_database = os.pread(descriptor, len(_SQLITE), 0) == _SQLITE
            return "an SQLite database" if is_database else None
        kind = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - text, not a path
    except OSError:  # no /proc
        return None
    return _KERNEL_OBJECTS.get(re.sub(r"^anon_inode:\[?|\]$", "", kind))


def _socket(found: socket.socket) -> str:
    kind = "UDP socket" if found.type == socket.SOCK_DGRAM else "socket"
    if found.family not in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}:
        return f"a {kind}"
    try:
        peer = found.getpeername()
    except OSError:
        return f"a {kind} at {own}" if (own := _address(found.getsockname())) else f"a {kind}"
    return f"a connection to {_address(peer)}" if peer else "a socket of a pair"


def _address(address: Any) -> str:
    if isinstance(address, tuple):
        host, port, *_ = address
        return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}") if port else ""
    return address.decode(errors="replace") if isinstance(address, bytes) else str(address)


def _name_of(descriptor: int) -> str | None:
    """Find the global variable that holds a descriptor, itself or in an attribute."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if isinstance(value, type) or type(value).__module__ == "builtins":
                continue
            inner = getattr(value, "__dict__", None)
            within = inner.values() if isinstance(inner, dict) else ()
            if any(_fileno(held) == descriptor for held in (value, *within)):
                return f"{module.__name__}.{name}"
    return None


def _fileno(value: Any) -> int | None:
    if callable(getattr(type(value), "fileno", None)):
        with contextlib.suppress(Exception):  # whatever a foreign object raises
            number = value.fileno()
            return number if isinstance(number, int) else None
    return None


# Time


@contextlib.contextmanager
def _bounded(seconds: float, report: Connection) -> Iterator[None]:
    """End this process if the block takes longer, after writing its stack to `report`.

    A fatal signal, such as SIGSEGV, writes one too.
    """
    faulthandler.enable(report.fileno())
    before = _native_threads()
    try:
        faulthandler.dump_traceback_later(min(seconds, _LONGEST), file=report.fileno(), exit=True)
    except RuntimeError as error:  # its thread needs 8 MB of address space
        raise worker.LoadError(f"there is no room to load anything: {error}") from None
    watching = _native_threads() - before
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        # Cancelling does not wait until its thread is gone; without this wait, one of three short
        # loads would warn of it as a library's.
        deadline = time.monotonic() + _PATIENCE
        while watching & _native_threads() and time.monotonic() < deadline:
            time.sleep(_PAUSE)


def why_lost(report: bytes, seconds: float) -> HostFailed:
    """Return the error of a template that ended while it loaded."""
    if report.startswith(b"Timeout"):
        return _took_too_long(report.decode(errors="replace"), seconds)
    ended = "the code that it preloads ended the template's process"
    if report.startswith(crashes.BEGIN):
        stack = crashes.stack(report)
        cause, _, _ = stack.removeprefix(crashes.BEGIN.decode()).partition("\n")
        return HostFailed(f"{ended}: {cause}", stack)
    return HostFailed(ended)


def _took_too_long(report: str, seconds: float) -> HostFailed:
    main_thread = report.rpartition("(most recent call first):")[2]
    frames = [found.groups() for line in main_thread.splitlines() if (found := _FRAME.match(line))]
    frames.reverse()
    # The frames before the user's own code are ours and the import system's.
    files = [file for file, *_ in frames]
    begin = files.index(_LOADER) if _LOADER in files else len(files)
    passed = (_LOADER, "<frozen importlib", importlib.__file__)
    frames = [frame for frame in frames[begin:] if not frame[0].startswith(passed)]
    text = "".join(traceback.format_list([(f, int(n), name, None) for f, n, name in frames]))
    where = f", and is now at line {frames[0][1]} of {frames[0][0]}" if frames else ""
    return HostFailed(
        f"loading takes longer than the start timeout of {seconds:g} s{where}. If it needs more "
        "time, raise `start_timeout`, or --start-timeout of `wsrelay run`",
        f"Stack at the time (most recent call last):\n{text}" if frames else "",
    )
