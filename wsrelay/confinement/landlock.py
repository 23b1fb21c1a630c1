"""Landlock: Linux lets a process give up parts of the file system (`man 7 landlock`).

Uses the plain system calls: their numbers are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from wsrelay.values import linux

__all__ = [
    "KNOWS_SCOPES",
    "KNOWS_TCP",
    "LandlockError",
    "keep_to_itself",
    "restrict",
    "version",
]

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446

_VERSION: Final = 1
_PATH_BENEATH: Final = 1

_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_MAKE_CHAR: Final = 1 << 6
_MAKE_BLOCK: Final = 1 << 11
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15
_UP_TO_TRUNCATE: Final = (1 << 15) - 1

_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_OF_FOLDERS: Final = ~(_MAKE_CHAR | _MAKE_BLOCK | _IOCTL_DEV)
"""In writable folders no devices can be created, and existing ones accept no ioctl."""

_OLDEST: Final = 3
"""Before this version (Linux 6.2) files that may only be read could still be truncated."""

_TCP: Final = 0b11
"""To bind and to connect (since version 4)."""

_SCOPES: Final = 0b11
"""No abstract Unix sockets of processes outside, and no signals to them (since version 6)."""

KNOWS_TCP: Final = 4
_KNOWS_IOCTL: Final = 5
KNOWS_SCOPES: Final = 6


class LandlockError(Exception):
    """The kernel cannot restrict a process like this; the text says why."""


def restrict(read: Iterable[Path], write: Iterable[Path]) -> None:
    """Leave this process and its children only these files and folders, with all below them.

    What may be read may also be executed, and what may be written may also be read. No device can
    be created, and only a device that is itself in `write` accepts ioctl. Open files stay open. The
    processes inside are kept to themselves, too: see `keep_to_itself`. Gaining privileges must
    already be ruled out (`linux.no_new_privileges`). Raises `LandlockError` where the kernel lacks
    Landlock, `OSError` for a path that cannot be opened.
    """
    supported = version()
    if supported < _OLDEST:
        raise LandlockError(
            f"this kernel's Landlock is version {supported} and needs to be {_OLDEST} (Linux 6.2), "
            "or files that may only be read could be truncated"
        )
    handled = _UP_TO_TRUNCATE | (_IOCTL_DEV if supported >= _KNOWS_IOCTL else 0)
    ruleset = _ruleset(supported, files=handled)
    try:
        for path in read:
            _allow(ruleset, path, _READ)
        for path in write:
            _allow(ruleset, path, handled)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def keep_to_itself() -> None:
    """Keep this process and its children from reaching any process outside from now on.

    That is, from its memory, and its environment, descriptors and folders in `/proc`, and from
    tracing it; since version 6 (Linux 6.12) also from signals and abstract Unix sockets. Raises
    `LandlockError` before version 4 (Linux 6.7), which could restrict nothing but files.
    """
    supported = version()
    if supported < KNOWS_TCP:
        raise LandlockError(f"this kernel's Landlock is version {supported} and needs to be 4")
    ruleset = _ruleset(supported, tcp=_TCP)
    try:
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def version() -> int:
    """Return the version of this kernel's Landlock; raises `LandlockError` if it has none."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    except OSError as error:
        raise LandlockError(f"this kernel has no Landlock ({error.strerror})") from None


def _ruleset(supported: int, *, files: int = 0, tcp: int = 0) -> int:
    attributes = struct.pack("=QQQ", files, tcp, _SCOPES)
    # An older kernel refuses fields that it does not know, even if they are zero.
    size = 24 if supported >= KNOWS_SCOPES else 16 if supported >= KNOWS_TCP else 8
    return _call(_CREATE_RULESET, attributes[:size], ctypes.c_size_t(size), 0)


def _allow(ruleset: int, path: Path, access: int) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        access &= _OF_FOLDERS if stat.S_ISDIR(os.fstat(opened).st_mode) else _OF_FILES
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, opened), 0)
    finally:
        os.close(opened)


def _call(number: int, *arguments: object) -> int:
    return linux.system_call(number, *arguments)
