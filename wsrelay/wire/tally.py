"""What workers note of themselves, where their node can look at any time: what they have taken.

A worker that computes for an hour cannot be asked anything, and a frame for each message that it
takes would cost as much as the message. So the workers of a host share memory with their node: each
has a line there, in which it counts the messages that it has taken and notes when it took the last.
Behind the lines there is room for one stack, which a worker writes to the descriptor when it is
sent `STACK`.

A worker can write there whatever it likes, also into the lines of others of its host: whoever reads
it must not believe more than that.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

__all__ = ["ASKED", "MEMORY", "TAKEN", "TOOK", "Tally", "TallySheet", "clock", "private_tally"]

Tally = memoryview
"""The line of one worker: 64-bit integers, `TAKEN`, `TOOK` and `ASKED`."""

MEMORY: Final = "wsrelay-tallies"
"""Part of the name of its memory, as `/proc` shows it."""

TAKEN: Final = 0
"""Where it counts the messages that it has taken."""

TOOK: Final = 1
"""Where it notes when it took the last: nanoseconds of the monotonic clock, 0 for never."""

ASKED: Final = 2
"""Where the node notes that `STACK` is to be answered; otherwise it comes too late."""

_FIELDS: Final = 3

_LINE: Final = 64
"""Bytes of a line, so that no two workers write to the same line of a cache."""

_MOST: Final = 64 * 1024
"""Lines of a sheet: where a host may have more processes than that, the others have none."""

_ONE: Final[dict[str, Any]] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
"""Keeps `mmap` from making a descriptor of its own, as far as it can be kept from that."""

_STACK: Final = 1024 * 1024
"""Bytes that a stack may have; the memory is used only once a stack is written."""


class TallySheet:
    """The lines of a host's workers, and room for a stack; pages that nobody uses do not exist.

    `descriptor` is that of the memory, which the sheet owns; its position in the file is shared by
    all processes that have it.
    """

    def __init__(self, descriptor: int, lines: int) -> None:
        self._descriptor = descriptor
        self.lines = lines
        self._begin = -(-lines * _LINE // mmap.PAGESIZE) * mmap.PAGESIZE
        """Where the stack begins."""
        self._memory = memoryview(mmap.mmap(descriptor, self._begin, **_ONE)).cast("q")

    @classmethod
    def make(cls, workers: int) -> TallySheet:
        """Make one for so many workers; raises `OSError`."""
        lines = min(workers, _MOST)
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create(MEMORY, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            import tempfile  # noqa: PLC0415 - not where workers carry it

            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, cls.size(lines))
            if hasattr(os, "memfd_create"):
                # Nobody may cut it, or the node would be ended by SIGBUS when it looks.
                seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
            return cls(descriptor, lines)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def inherited(cls, descriptor: int, lines: int) -> TallySheet:
        """Return that of the node in a template, for all of its forks; it is never closed.

        Up to Python 3.12 `mmap` needs a descriptor of its own. That is the lowest that is free, and
        takes the place of the given one, so that each worker has one and not two.
        """
        free = os.dup(descriptor)
        os.close(free)
        sheet = cls(descriptor, lines)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(free), os.fstat(descriptor)):
                os.close(descriptor)
                sheet._descriptor = free
        return sheet

    @staticmethod
    def size(lines: int) -> int:
        """Return the bytes of a sheet."""
        return -(-lines * _LINE // mmap.PAGESIZE) * mmap.PAGESIZE + _STACK

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._descriptor

    def line(self, number: int) -> Tally:
        """Return the line of that number, beginning with 0."""
        first = number * (_LINE // self._memory.itemsize)
        return self._memory[first : first + _FIELDS]

    def clear_stack(self) -> None:
        """Have what is written to the descriptor from now on be read by `stack`."""
        os.lseek(self._descriptor, self._begin, os.SEEK_SET)

    def stack(self) -> bytes:
        """Return what has been written since `clear_stack`."""
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        return os.pread(self._descriptor, max(0, min(end - self._begin, _STACK)), self._begin)

    def close(self) -> None:
        """Close it; lines that were given out stay, and the memory goes with the last of them."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            self._memory.release()
            os.close(descriptor)


def private_tally() -> Tally:
    """Return a line that nobody else sees."""
    return memoryview(bytearray(8 * _FIELDS)).cast("q")


def clock(now: Callable[[], int] = time.monotonic_ns) -> Iterator[int]:
    """Return an iterator of the present time, for lines that must not have a call."""
    return iter(now, -1)
