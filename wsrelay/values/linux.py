"""What the operating system offers for processes beyond the `os` module."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import struct
import sys
from pathlib import Path

__all__ = [
    "REAPED",
    "become_subreaper",
    "bound_capabilities",
    "die_with_parent",
    "drop_capabilities",
    "filter_system_calls",
    "forget_environment",
    "keep_freed_memory",
    "no_new_privileges",
    "process_of",
    "relations",
    "started",
    "status",
    "stopped",
    "system_call",
]

REAPED = -1
"""Stands for the process id of a process that has been reaped."""

_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES_VERSION = 0x20080522
_MOST_CAPABILITIES = 64
_SECCOMP_MODE_FILTER = 2
_FILTER_LINE = 8
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_BUFFER = 32 * 1024 * 1024
_FIELD = re.compile(r"^(\w+):[ \t]*(.*)$", re.MULTILINE)

# Loaded once, before any fork: a dlopen costs more than all the rest of a worker's start.
_libc = ctypes.CDLL(None, use_errno=True) if _LINUX else None


def _prctl(option: int, value: int, pointer: object = 0) -> None:
    if _libc is not None and _libc.prctl(option, value, pointer, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}, {value}): {os.strerror(error)}")


def system_call(number: int, *arguments: object) -> int:
    """Make a system call that Python has no function for (Linux); raises `OSError`."""
    if _libc is None:
        raise OSError(errno.ENOSYS, f"{sys.platform} is not Linux")
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def no_new_privileges() -> None:
    """Gain no privileges by executing set-uid programs; children inherit this (Linux)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def bound_capabilities() -> None:
    """Keep executed programs from gaining any capability (Linux); needs CAP_SETPCAP.

    Without it nothing is done, and only `no_new_privileges` keeps capabilities away.
    """
    for capability in range(_MOST_CAPABILITIES):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError:  # EPERM, or there are no further ones
            return


def drop_capabilities() -> None:
    """Give up all capabilities: root is then just the owner of its files (Linux).

    The ambient capabilities go with them.
    """
    header = struct.pack("=Ii", _CAPABILITIES_VERSION, 0)
    if _libc is not None and _libc.capset(header, bytes(24)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"capset: {os.strerror(error)}")


def filter_system_calls(program: bytes) -> None:
    """Pass every system call from now on through a seccomp filter, a BPF program (Linux)."""

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_char_p)]

    described = Program(len(program) // _FILTER_LINE, program)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(described))


def forget_environment() -> None:
    """Wipe the environment that the process was started with from its memory (Linux).

    It would otherwise stay readable in `/proc/self/environ`, whatever is removed from `os.environ`.
    `os.environ` must be empty, since the C library would still point into the wiped memory.
    """
    start, end = (int(_stat("self")[field]) for field in (50, 51))
    ctypes.memset(start, 0, end - start)


def keep_freed_memory(most: int = 2 * _LARGEST_BUFFER) -> None:
    """Let the C library keep up to `most` bytes of freed memory for reuse (glibc).

    By default it returns the buffers of each large message to the system, and clean pages for the
    next message cost more than the message itself. 64 MB is what it arrives at by itself once a
    buffer of 32 MB has been freed (mallopt(3)).
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BUFFER)
        mallopt(_M_TRIM_THRESHOLD, most)


def become_subreaper() -> None:
    """Adopt every orphan among this process's descendants (Linux; does nothing elsewhere)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Be killed as soon as the parent's thread that forked this process ends (Linux).

    `parent` is the parent's process id from before the fork, to detect that it has already ended.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def process_of(pidfd: int) -> int | None:
    """Return the process id that a pidfd stands for, or None if it is not a pidfd (Linux).

    The result is `REAPED` for a process that is gone, and 0 for one that is not visible from here.
    """
    fields = _fields(f"/proc/self/fdinfo/{pidfd}")
    return int(fields["Pid"]) if "Pid" in fields else None


def relations(pid: int) -> tuple[int, set[int]] | None:
    """Return a process's parent, and its real, effective and saved user ids (Linux).

    Returns None if there is no such process.
    """
    fields = _fields(f"/proc/{pid}/status")
    if "PPid" not in fields:
        return None
    return int(fields["PPid"]), {int(user) for user in fields["Uid"].split()[:3]}


def status(pid: int) -> dict[str, str]:
    """Return the lines of a process's `status`, by name (Linux); empty if there is no process."""
    return _fields(f"/proc/{pid}/status")


def stopped(pid: int) -> bool:
    """Whether a process is stopped, by a signal or a debugger (Linux)."""
    return status(pid).get("State", "-")[0] in "Tt"


def _fields(path: str) -> dict[str, str]:
    """Read lines of names and values; the kernel escapes line feeds in a process's name."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return {}
    return dict(_FIELD.findall(text))  # no call for each of 60 lines: every start reads this


def started(pid: int) -> int | None:
    """Return when a process was started, in ticks since boot, or None if it does not exist.

    Together with the process id it identifies a process for as long as the system runs (Linux).
    """
    try:
        return int(_stat(str(pid))[22])
    except OSError:
        return None


def _stat(pid: str) -> dict[int, bytes]:
    """Return the fields of a process's `stat` by their numbers in proc_pid_stat(5)."""
    stat = Path("/proc", pid, "stat").read_bytes()
    # The name before field 3 is in parentheses and may contain anything.
    return dict(enumerate(stat[stat.rindex(b")") + 2 :].split(), 3))
