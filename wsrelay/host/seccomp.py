"""Seccomp: a process gives up the system calls that make sockets (`man 2 seccomp`)."""

from __future__ import annotations

import errno
import os
import struct
from typing import Final, NamedTuple

from wsrelay import osproc

__all__ = ["SeccompError", "forbid_sockets"]


class SeccompError(Exception):
    """It is not known how, on this machine; the text says why."""


class _Machine(NamedTuple):
    """What the kernel calls the architecture, and the number of its `socket`."""

    audit: int
    socket: int


_MACHINES: Final = {
    "x86_64": _Machine(0xC000003E, 41),
    "aarch64": _Machine(0xC00000B7, 198),
    "riscv64": _Machine(0xC00000F3, 198),
}
_IO_URING_SETUP: Final = 425
_X32: Final = 0x40000000
"""From here on they are x86-64's second table of calls."""

_LOAD: Final = 0x20
_EQUAL: Final = 0x15
_AT_LEAST: Final = 0x35
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_FAIL: Final = 0x00050000 | errno.EACCES
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4


def forbid_sockets() -> None:
    """Let this process and its children make no sockets of any family, but for `socketpair`.

    `socket` fails with EACCES; so does io_uring, which could make them too, and every call of
    another architecture. Sockets that are open stay usable. Raises `SeccompError`.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        raise SeccompError(
            f"the system calls of {os.uname().machine} are not known "
            f"(only those of {', '.join(_MACHINES)})"
        )
    # Jumps count the instructions to skip: (code, if true, if false, operand).
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 0, 5, machine.audit),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 3, 0, _X32),
        (_EQUAL, 2, 0, machine.socket),
        (_EQUAL, 1, 0, _IO_URING_SETUP),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _FAIL),
    ]
    osproc.no_new_privileges()
    osproc.filter_system_calls(b"".join(struct.pack("=HBBI", *line) for line in program))
