"""The runtime directory, which holds the control sockets of a user's running nodes."""

from __future__ import annotations

import itertools
import os
import socket
import stat
import tempfile
import threading
from pathlib import Path
from typing import Final

__all__ = ["ControlError", "bind", "check", "release", "runtime_directory"]


_reserved: Final[set[Path]] = set()
"""The sockets of this OS process's nodes."""

_reserving: Final = threading.Lock()


class ControlError(Exception):
    """A control socket cannot be created or used safely; the message says why."""


def runtime_directory() -> Path:
    """Return `$WSRELAY_RUNTIME_DIR`, `$XDG_RUNTIME_DIR/wsrelay` or `/tmp/wsrelay-<uid>`."""
    if given := os.environ.get("WSRELAY_RUNTIME_DIR"):
        return Path(given)
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(given, "wsrelay")
    return Path(tempfile.gettempdir(), f"wsrelay-{os.getuid()}")


def bind(directory: Path, node: str) -> tuple[socket.socket, Path]:
    """Return a listening socket with mode 0600, in a directory that is ours alone, and its path.

    It has the name of the node and the OS PID. `release` it in the end. Raises `ControlError`.
    """
    _make(directory)
    path = _reserve(directory, node)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    new = path.with_suffix(
        ".new"
    )  # who finds a socket that does not listen takes it for a dead one
    try:
        new.unlink(missing_ok=True)  # it has our own OS PID: its node must be gone
        listener.bind(str(new))
        new.chmod(0o600)  # nobody could open it before: the directory is 0700
        listener.listen(16)
        new.replace(path)
    except OSError as error:
        listener.close()
        _reserved.discard(path)
        hint = "; set WSRELAY_RUNTIME_DIR to a shorter path" if len(str(path)) > 100 else ""  # noqa: PLR2004 - sun_path has 108
        raise ControlError(f"cannot make the control socket {path}: {error}{hint}") from None
    return listener, path


def release(listener: socket.socket, path: Path) -> None:
    """Undo `bind`."""
    listener.close()
    path.unlink(missing_ok=True)
    _reserved.discard(path)


def _reserve(directory: Path, node: str) -> Path:
    """Return a path that no other node of this OS process has: those of one name are numbered."""
    with _reserving:
        for number in itertools.count(1):
            name = node if number == 1 else f"{node}.{number}"
            path = directory / f"{name}-{os.getpid()}.sock"
            if path not in _reserved:
                break
        _reserved.add(path)
    return path


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ControlError(f"cannot make the runtime directory {directory}: {error}") from None
    check(directory)


def check(directory: Path) -> None:
    """Raise `ControlError` for a directory in which another user may have put sockets.

    One that does not exist is safe: there is nothing in it.
    """
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ControlError(f"cannot access the runtime directory {directory}: {error}") from None
    why = None
    if not stat.S_ISDIR(status.st_mode):
        why = "it is not a directory"
    elif status.st_uid != os.getuid():
        why = f"it belongs to user {status.st_uid}"
    elif status.st_mode & 0o077:
        why = f"others can open it (mode {stat.S_IMODE(status.st_mode):04o}, not 0700)"
    if why is not None:
        raise ControlError(
            f"the runtime directory {directory} is not safe: {why}; "
            "set WSRELAY_RUNTIME_DIR to another one"
        )
