"""What a process writes to its standard output and error, as lines of the node's log."""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import re
import termios
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from wsrelay.template import crashes

from .log import Intake

__all__ = ["Output"]

_CHUNK: Final = 4096
"""Bytes of one read: including the cost of logging the lines, a few milliseconds of loop time."""

_PIPE: Final = 64 * 1024
"""Bytes of one read of a dead process's output: what a pipe holds unless it was made larger."""

_AT_ONCE: Final = 32
"""Lines that are logged in one iteration of the loop."""

_LONGEST_LINE: Final = 16 * 1024
"""Bytes from which on a line is logged without waiting for its end."""

_PER_LINE: Final = 2048
"""Bytes read per second for each line per second that may be logged; if the lines are shorter than
this, some are left out."""

_LEAST_RATE: Final = 64 * 1024
"""Bytes per second that are read in any case."""

_LONGEST_CRASH: Final = 64 * 1024
"""Bytes; a stack of a hundred frames is 8 KB."""

_PATIENCE: Final = 1.0
"""Seconds within which a process that has written its stack should be dead."""

_BREAK: Final = re.compile(rb"\r\n|\n|\r(?!\Z)")
"""Carriage returns count, since progress bars use them; the last one may be half of a break."""


class Output:
    """One pipe for both streams, so that they keep their order; the node's end never waits.

    Lines beyond `rate` a second are left out and counted. Beyond `rate` times `_PER_LINE` bytes a
    second nothing is read: a process that writes more waits. `first` is called before each read; it
    receives the log records that the process wrote earlier, and returns whether all of them have
    been received. Raises `OSError` if the system has no descriptors left.
    """

    def __init__(
        self,
        intake: Intake,
        rate: float,
        about: Callable[[], dict[str, Any]],
        first: Callable[[], bool] = lambda: True,
    ) -> None:
        self._intake = intake
        self._about = about
        self._first = first
        self._loop = asyncio.get_running_loop()
        self._reading, self.writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._rate = max(rate * _PER_LINE, _LEAST_RATE)
        self._allowance = self._rate
        self._then = self._loop.time()
        self._rest = b""
        self._lines: deque[bytes] = deque()
        """Lines that wait for the loop's next iteration; nothing is read in the meantime."""
        self._paused: asyncio.Handle | None = None
        self._over = False
        self.total = 0
        """Bytes read so far."""
        self.crash = b""
        """What `faulthandler` has written: the node reports it with the end of the process."""
        self._crash_told: asyncio.Handle | None = None
        self._loop.add_reader(self._reading, self._readable)

    def read_to(self, total: int) -> None:
        """Read until `total` bytes have been read in all, as far as available and allowed."""
        self._tell(len(self._lines))  # they have been waiting, and come before the rest
        while self.total < total and self._allowance >= 0 and not self._over:
            if not self._read(min(total - self.total, _CHUNK)):
                return
            self._tell(len(self._lines))

    def _readable(self) -> None:
        if self._paused is None and self._first() and self._paused is None and not self._over:
            self._read(_CHUNK)
            self._tell(_AT_ONCE)

    def _read(self, size: int) -> int:
        """Read lines; returns how many bytes were read."""
        self._renew_allowance()
        try:
            data = os.read(self._reading, size)
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:  # every writing end is closed
            self._loop.remove_reader(self._reading)
            return 0
        self.total += len(data)
        self._allowance -= len(data)
        self._split(data)
        return len(data)

    def _split(self, data: bytes) -> None:
        *lines, rest = _BREAK.split(self._rest + data)
        self._lines += lines
        while len(rest) > _LONGEST_LINE:
            cut = _LONGEST_LINE
            while cut > _LONGEST_LINE - 4 and rest[cut] & 0xC0 == 0x80:  # noqa: PLR2004 - inside a UTF-8 character
                cut -= 1
            self._lines.append(rest[:cut])
            rest = rest[cut:]
        self._rest = rest

    def _renew_allowance(self) -> None:
        now = self._loop.time()
        self._allowance = min(self._rate, self._allowance + (now - self._then) * self._rate)
        self._then = now

    def _go_on(self) -> None:
        self._paused = None
        self._renew_allowance()
        self._loop.add_reader(self._reading, self._readable)
        self._tell(_AT_ONCE)

    def _tell(self, most: int) -> None:
        """Log up to `most` lines; wait for the next iteration, or until more may be read."""
        while self._lines and most:
            if self._tell_line(self._lines.popleft()):
                most -= 1
            elif not any(crashes.BEGIN in line for line in self._lines) and not self.crash:
                # One by one they would hold up the loop: 4,000 empty lines for 6 ms.
                self._intake.leave_out(self._lines)
                self._lines.clear()
        if self._over:
            return
        if self._lines:
            self._pause(0)
        elif self._allowance < 0:
            self._intake.waits(self._rate, self._about)
            self._pause(-self._allowance / self._rate)

    def _pause(self, seconds: float) -> None:
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._reading)
        self._paused = self._loop.call_later(seconds, self._go_on)

    def _tell_line(self, line: bytes) -> bool:
        """Log a line; returns whether it was logged."""
        if self.crash:
            self.crash += line[: _LONGEST_CRASH - len(self.crash)] + b"\n"
            return True
        before, begin, behind = line.partition(crashes.BEGIN)
        passed = self._intake.line(before, self._about) if before or not begin else True
        if begin:
            self.crash = begin + behind + b"\n"
            if not self._over:
                self._crash_told = self._loop.call_later(_PATIENCE, self.tell_crash)
        return passed

    def tell_crash(self) -> None:
        """Log the stack like any other lines: the process did not end by it."""
        if self._crash_told is not None:
            self._crash_told.cancel()
            self._crash_told = None
        crash, self.crash = self.crash, b""
        for line in crash.splitlines():
            self._intake.line(line, self._about)

    def finish(self) -> None:
        """Log what the dead process left in the pipe, its last lines in any case, and close.

        Reads only what is there now: a grandchild may hold the other end and keep writing.
        """
        if self._over:
            return
        self._over = True
        self._loop.remove_reader(self._reading)
        for timer in (self._paused, self._crash_told):
            if timer is not None:
                timer.cancel()
        left = array.array("i", [0])
        fcntl.ioctl(self._reading, termios.FIONREAD, left)
        remaining = left[0]
        try:
            while remaining > 0 and (data := os.read(self._reading, min(remaining, _PIPE))):
                remaining -= len(data)
                self._split(data)
                self._tell(len(self._lines))
        except OSError:
            pass
        if self._rest:
            self._lines.append(self._rest.rstrip(b"\r"))
            self._rest = b""
        self._tell(len(self._lines))
        os.close(self._reading)

    def abandon(self) -> None:
        """Close it where no event loop is running any more."""
        if not self._over:
            self._over = True
            os.close(self._reading)
