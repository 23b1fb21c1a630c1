"""The worker's end of its pipe: blocking, write-through, one frame at a time."""

from __future__ import annotations

import asyncio
import functools
import os
import select
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from wsrelay import current, wire
from wsrelay.duplex import Duplex

__all__ = ["WorkerPipe"]

_CHUNK: Final = 64 * 1024
"""Bytes of one read; more than 128 KiB would be mapped and unmapped by malloc each time."""


class ShutLock:
    """A lock that nobody gets: raises `NotAProcess`, as all that a child calls."""

    def acquire(self, *_: object, **__: object) -> bool:
        """Say whose child this is."""
        current.worker()
        return False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None: ...

    def release(self) -> None: ...


class WorkerPipe:
    """Frames out and in.

    When `write` returns the kernel has the bytes, so they survive the death of this process (a
    buffer of 64 KB here would lose hundreds of messages at a SIGKILL). Any thread may write; one
    at a time may read.
    """

    def __init__(self, ends: Duplex) -> None:
        self.ends = ends
        os.set_blocking(ends.writing, False)
        self._poll = select.poll()
        self._poll.register(ends.reading, select.POLLIN)
        self._reader = wire.to_worker()
        self._writing: threading.Lock | ShutLock = threading.Lock()
        self._interrupt: bytes | None = None
        self._queued = 0
        self._thread: ThreadPoolExecutor | None = None

    def shut(self) -> None:
        """Write and read nothing any more, in a child whose parent goes on to use the pipe.

        Whoever holds on to it is told by the lock, so that it costs nobody else anything.
        """
        self.ends.close()
        self._writing = ShutLock()

    def write(self, frame: wire.Frame) -> None:
        """Write a frame; waits while the pipe is full.

        Raises `PayloadError` for a frame that the node could not read, `OSError` when it is gone.
        """
        self._write(wire.pack_request(frame))

    def _write(self, data: bytes) -> None:
        with self._writing:
            self.ends.write_all(data)
        if self._interrupt is not None:
            self._flush_interrupt()

    async def write_async(self, frame: wire.Frame) -> None:
        """Do what `write` does without holding up the event loop.

        Half a frame cannot be taken back, so a frame that has begun to wait is written all the
        same when its writer is cancelled.
        """
        if (future := self.enqueue(frame)) is not None:
            await asyncio.shield(future)

    def enqueue(self, frame: wire.Frame) -> asyncio.Future[None] | None:
        """Write a frame in the event loop's thread behind all that was enqueued before.

        Returns None when it went, else what to await. Raises as `write`.
        """
        data = wire.pack_request(frame)
        if self._queued:
            rest: Callable[[], None] | None = functools.partial(self._write, data)
        else:
            rest = self._try_write(data)
        if rest is None:
            return None
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "wsrelay writer")
        self._queued += 1
        future = asyncio.wrap_future(self._thread.submit(rest))
        future.add_done_callback(self._unqueue)
        return future

    def _unqueue(self, _: object) -> None:
        self._queued -= 1

    def _try_write(self, data: bytes) -> Callable[[], None] | None:
        """Write a frame's bytes if that needs no waiting; None when it went.

        Otherwise returns what is left to do, to be called once where waiting is allowed.
        """
        if not self._writing.acquire(blocking=False):
            return functools.partial(self._write, data)
        rest = memoryview(data)
        try:
            rest = rest[os.write(self.ends.writing, rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self._writing.release()
            raise
        if rest:
            return functools.partial(self._finish, rest)
        self._finish(b"")
        return None

    def _finish(self, rest: bytes | memoryview) -> None:
        """Write the rest of a frame and let go of the lock."""
        try:
            if rest:
                self.ends.write_all(rest)
        finally:
            self._writing.release()
        if self._interrupt is not None:
            self._flush_interrupt()

    def write_from_signal_handler(self, frame: wire.Frame) -> None:
        """Write a frame even if this very thread is in the middle of writing another.

        Then it goes out right behind that one: whoever releases the lock looks for it.
        """
        self._interrupt = wire.pack(frame)
        self._flush_interrupt()

    def _flush_interrupt(self) -> None:
        while self._interrupt is not None and self._writing.acquire(blocking=False):
            try:
                data, self._interrupt = self._interrupt, None
                if data is not None:
                    self.ends.write_all(data)
            finally:
                self._writing.release()

    def read(self, timeout: float | None) -> list[tuple[wire.ToWorker, int]]:
        """Wait up to `timeout` seconds (None: for ever) for bytes and give the complete frames.

        Raises `EOFError` when the node is gone.
        """
        if timeout is not None and not self._poll.poll(max(timeout, 0) * 1000):
            return []
        data = os.read(self.ends.reading, _CHUNK)
        if not data:
            raise EOFError
        return self._reader.feed(data)
