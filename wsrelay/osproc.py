"""What the operating system offers for processes beyond the `os` module."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

__all__ = ["become_subreaper", "children", "die_with_parent", "outlive_parent"]

_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# Loaded once, before any fork: a dlopen costs more than the whole rest of a worker's start.
_libc = ctypes.CDLL(None, use_errno=True) if _LINUX else None


def _prctl(option: int, value: int) -> None:
    if _libc is not None and _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}, {value}): {os.strerror(error)}")


def become_subreaper() -> None:
    """Adopt every orphan among this process's descendants (Linux; elsewhere nothing)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Be killed as soon as the parent's thread that forked this process ends (Linux).

    `parent` is the parent's process id from before the fork, to notice that it has ended already.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def outlive_parent() -> None:
    """Undo `die_with_parent`."""
    _prctl(_PR_SET_PDEATHSIG, 0)


def children(parent: int) -> list[int]:
    """Return the process ids of the children of a process, zombies too (Linux; elsewhere none)."""
    found = []
    for entry in Path("/proc").iterdir() if _LINUX else ():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_bytes()
            except OSError:  # it ended while we looked
                continue
            # The name stands in parentheses and may hold anything; the parent is second after it.
            if int(stat[stat.rindex(b")") + 2 :].split()[1]) == parent:
                found.append(int(entry.name))
    return found
