"""Two pipes that make one connection between two processes.

Pipes and not a socket pair: the kernel's way through a Unix socket takes twice as long. A ping-pong
of 150 bytes with 32 processes took 5.7 µs of system time a message over sockets and 3.1 over pipes.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from typing import Self

__all__ = ["Duplex", "close_all"]


class Duplex:
    """One end: descriptors to read from and to write to, -1 once closed."""

    __slots__ = ("reading", "writing")

    def __init__(self, reading: int, writing: int) -> None:
        self.reading = reading
        self.writing = writing

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Make both ends; raises `OSError`."""
        reading, their_writing = os.pipe()
        try:
            their_reading, writing = os.pipe()
        except OSError:
            os.close(reading)
            os.close(their_writing)
            raise
        return cls(reading, writing), cls(their_reading, their_writing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor to read from."""
        return self.reading

    def filenos(self) -> tuple[int, int]:
        """Return both descriptors, to hand them to another process."""
        return self.reading, self.writing

    def write_all(self, data: bytes | memoryview) -> None:
        """Write all of it and wait as long as that takes; raises `OSError`."""
        while True:
            try:
                sent = os.write(self.writing, data)
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.writing, select.POLLOUT)
                poll.poll()
                continue
            if sent == len(data):
                return
            data = memoryview(data)[sent:]

    def close(self) -> None:
        """Close both directions."""
        self.close_writing()
        if self.reading >= 0:
            reading, self.reading = self.reading, -1
            os.close(reading)

    def close_writing(self) -> None:
        """Close the direction out: the other end reads to its end."""
        if self.writing >= 0:
            writing, self.writing = self.writing, -1
            os.close(writing)


def close_all(descriptors: Iterable[int | None]) -> None:
    """Close descriptors that were received; None stands for one that there was no room for."""
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)
