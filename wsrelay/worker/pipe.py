"""The worker's end of its pipe: blocking, write-through, one frame at a time.

A signal handler of user code may raise in the middle of all this, and may write itself. CPython
calls it after a call, where a function begins and where a loop jumps back, and nowhere else: so
what has to happen as one, such as a system call and the note of what it did, stands in lines
without a call, and the system call is made by `map` while these lines step on it.
"""

from __future__ import annotations

import _thread
import asyncio
import itertools
import operator
import os
import select
import threading
from collections import deque
from queue import SimpleQueue
from typing import Any, Final

from wsrelay import wire
from wsrelay.values import current
from wsrelay.wire.pipe_pair import Duplex

__all__ = ["WorkerPipe"]

_CHUNK: Final = 64 * 1024
"""Bytes of one read; more than 128 KiB would be mapped and unmapped by malloc each time."""

_WHOLE: Final = select.PIPE_BUF
"""Bytes that a pipe takes as a whole or not at all (pipe(7)): no frame of these is ever cut."""

_PATIENT: Final = 16 * 1024 * 1024
"""Bytes in line from which on not even a coroutine's plain calls return before there is room."""


class _Waiting:
    """A frame in line: what is left of it, and whom to tell when nothing is."""

    __slots__ = ("gone", "rest", "size")

    def __init__(self, data: bytes) -> None:
        self.rest = memoryview(data)
        self.size = len(data)
        self.gone: asyncio.Future[None] | None = None


_first = operator.itemgetter(0)
_rest = operator.attrgetter("rest")


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

    Frames that the pipe has no room for stand in one line. Whoever wrote them waits; in the thread
    of an event loop that is attached nobody does, and a thread of the pipe's own sees them through.
    """

    def __init__(self, ends: Duplex) -> None:
        self.ends = ends
        os.set_blocking(ends.writing, False)
        self._poll = select.poll()
        self._poll.register(ends.reading, select.POLLIN)
        self._reader = wire.to_worker()
        self._reads = map(os.read, itertools.repeat(ends.reading), itertools.repeat(_CHUNK))
        self._data = b""
        """What was read and not taken apart yet, because a signal handler raised."""
        self._writing: Any = threading.RLock()  # a signal handler may write while its thread has it
        self._line: deque[_Waiting] = deque()
        """Frames without room; the first may have begun."""
        self._waiting = 0
        """Bytes in line."""
        self._gone: deque[asyncio.Future[None]] = deque()
        """Those whose frames have left the line and who were not told yet."""
        self._work: SimpleQueue[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let what is written in this thread while the loop runs never wait."""
        self._loop_thread = threading.get_ident()
        self._loop = loop

    def shut(self) -> None:
        """Write and read nothing any more, in a child whose parent goes on to use the pipe.

        Whoever holds on to it is told by the lock, so that it costs nobody else anything.
        """
        self.ends.close()
        self._writing = ShutLock()

    def write(self, frame: wire.Frame) -> None:
        """Write a frame; waits while the pipe is full, but for the thread of a running event loop.

        Raises `PayloadError` for a frame that the node could not read, `OSError` when it is gone.
        What a signal handler raises meanwhile is raised too; a frame that had begun by then is
        written to its end all the same, one that had not is not written.
        """
        data = wire.pack_request(frame)
        if self._loop is not None and self._in_loop() and self._waiting < _PATIENT:
            self._post(data)
            return
        with self._writing:
            if len(data) <= _WHOLE and not self._line:
                try:
                    os.write(self.ends.writing, data)
                except BlockingIOError:
                    pass
                else:
                    return
        self._wait_in_line(data)

    async def write_async(self, frame: wire.Frame) -> None:
        """Do what `write` does without holding up the event loop.

        A frame that has begun to wait is written all the same when its writer is cancelled.
        """
        data = wire.pack_request(frame)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.attach(loop)
        if (gone := self._post(data, loop)) is not None:
            await gone

    def post(self, frame: wire.Frame) -> None:
        """Write a frame without ever waiting: for signal handlers."""
        self._post(wire.pack_request(frame))

    def _in_loop(self) -> bool:
        """Whether this is the thread of the event loop, and it runs."""
        return (
            self._loop_thread == threading.get_ident()
            and self._loop is not None
            and self._loop.is_running()
        )

    # The line

    def _post(
        self, data: bytes, loop: asyncio.AbstractEventLoop | None = None
    ) -> asyncio.Future[None] | None:
        """Write a frame behind all that is in line; returns what the loop can await, if it must."""
        waiting = None
        try:
            with self._writing:
                if len(data) <= _WHOLE and not self._line:
                    try:
                        os.write(self.ends.writing, data)
                    except BlockingIOError:
                        pass
                    else:
                        return None
                waiting = _Waiting(data)
                self._join(waiting)
                if self._line[0] is waiting and self._advance():
                    return None
                if loop is not None:
                    waiting.gone = loop.create_future()
        except BaseException:
            self._leave(waiting)
            raise
        self._see_through()
        return waiting.gone

    def _wait_in_line(self, data: bytes) -> None:
        waiting = _Waiting(data)
        try:
            self._join(waiting)
            while not self._advance() and waiting.rest:
                self._wait_for_room()
        except BaseException:
            self._leave(waiting)
            raise

    def _join(self, waiting: _Waiting) -> None:
        with self._writing:
            self._line += (waiting,)
            self._waiting += waiting.size

    def _leave(self, waiting: _Waiting | None) -> None:
        """Wait for a frame no more: if it has begun it goes out all the same, else it does not."""
        with self._writing:
            if (
                waiting is not None
                and waiting in self._line
                and waiting.rest.nbytes == waiting.size
            ):
                self._waiting -= waiting.size
                self._line.remove(waiting)
        if self._line:
            self._see_through()

    def _advance(self) -> bool:
        """Write what is in line as far as there is room; whether all of it went."""
        with self._writing:
            line = self._line
            try:
                while line:
                    first = map(_rest, map(_first, (line,)))  # as it is when the write is made
                    for sent in map(os.write, (self.ends.writing,), first):
                        # No call down to the last line of this block.
                        waiting = line[0]
                        waiting.rest = waiting.rest[sent:]
                        self._waiting -= sent
                        if not waiting.rest:
                            del line[0]
                            if waiting.gone is not None:
                                self._gone += (waiting.gone,)
            except BlockingIOError:
                pass
            except IndexError:
                if line:
                    raise
                # A signal handler has written the last of it.
            while self._gone:
                gone = self._gone[0]
                _tell(gone)
                if self._gone and self._gone[0] is gone:
                    del self._gone[0]
            return not line

    def _wait_for_room(self) -> None:
        poll = select.poll()
        poll.register(self.ends.writing, select.POLLOUT)
        poll.poll()

    def _see_through(self) -> None:
        """Have the line written by the pipe's own thread."""
        if self._work is None:
            work: SimpleQueue[None] = SimpleQueue()
            try:
                for _ in map(_thread.start_new_thread, (self._write_on,), ((work,),)):
                    self._work = work
                work.put(None)
            except RuntimeError as error:
                if "new thread" not in str(error):
                    raise
                # There may be no more threads here: better late than never.
                while not self._advance():
                    self._wait_for_room()
        else:
            self._work.put(None)

    def _write_on(self, work: SimpleQueue[None]) -> None:
        while True:
            work.get()
            try:
                while not self._advance():
                    self._wait_for_room()
            except OSError as error:  # the node is gone, and this process about to be
                with self._writing:
                    for waiting in self._line:
                        if waiting.gone is not None:
                            _tell(waiting.gone, error)
                    self._line.clear()
                    self._waiting = 0

    # In

    def read(self, timeout: float | None) -> list[tuple[wire.ToWorker, int]]:
        """Wait up to `timeout` seconds (None: for ever) for bytes and give the complete frames.

        Raises `EOFError` when the node is gone.
        """
        if not self._data:
            if timeout is not None and not self._poll.poll(max(timeout, 0) * 1000):
                return []
            try:
                for self._data in self._reads:  # noqa: B020 - once
                    break
            except BlockingIOError:  # uvloop watches it, and has it so; or its loop was quicker
                if timeout is None:
                    self._poll.poll()
                return []
            if not self._data:
                raise EOFError
        frames = self._reader.feed(self._data)
        self._data = b""
        return frames


def _tell(gone: asyncio.Future[None], error: OSError | None = None) -> None:
    """Let a coroutine go on; from any thread."""

    def tell() -> None:
        if gone.done():
            return
        if error is None:
            gone.set_result(None)
        else:
            gone.set_exception(error)

    try:
        gone.get_loop().call_soon_threadsafe(tell)
    except RuntimeError:
        pass  # the loop is closed, and nobody waits any more
