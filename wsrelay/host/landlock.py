"""Landlock: Linux lets a process give up parts of the file system (`man 7 landlock`).

The plain system calls: their numbers are the same on every architecture.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from wsrelay import osproc

__all__ = ["LandlockError", "restrict", "version"]

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446

_VERSION: Final = 1
_PATH_BENEATH: Final = 1

_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15
_UP_TO_TRUNCATE: Final = (1 << 15) - 1

_READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
_OF_FILES: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV

_OLDEST: Final = 3
"""Before it (Linux 6.2) files that may only be read could be truncated all the same."""

_SCOPES: Final = 0b11
"""No abstract Unix sockets of, and no signals to, processes outside (from version 6 on)."""


class LandlockError(Exception):
    """The kernel cannot do it; the text says why."""


def restrict(read: Iterable[Path], write: Iterable[Path]) -> None:
    """Leave this process and its children only these files and folders, with all below them.

    What may be read may be executed too, what may be written may be read. Files that are open stay
    so. Raises `LandlockError` where the kernel lacks Landlock, `OSError` for a path that cannot be
    opened.
    """
    there = version()
    handled = _UP_TO_TRUNCATE | (_IOCTL_DEV if there >= 5 else 0)  # noqa: PLR2004
    attributes = struct.pack("=Q", handled)
    if there >= 6:  # noqa: PLR2004
        attributes = struct.pack("=QQQ", handled, 0, _SCOPES)
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for path in read:
            _allow(ruleset, path, _READ)
        for path in write:
            _allow(ruleset, path, handled)
        osproc.no_new_privileges()
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def version() -> int:
    """Return the version of this kernel's Landlock; raises `LandlockError` where it will not do."""
    try:
        there = _call(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    except OSError as error:
        raise LandlockError(f"this kernel has no Landlock ({error.strerror})") from None
    if there < _OLDEST:
        raise LandlockError(
            f"this kernel's Landlock is version {there} and needs to be {_OLDEST} (Linux 6.2), "
            "or files that may only be read could be truncated"
        )
    return there


def _allow(ruleset: int, path: Path, access: int) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(opened).st_mode):
            access &= _OF_FILES
        _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, opened), 0)
    finally:
        os.close(opened)


def _call(number: int, *arguments: object) -> int:
    return osproc.system_call(number, *arguments)
