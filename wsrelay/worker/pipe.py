"""The worker's end of its pipe: blocking, write-through, one frame at a time.

A signal handler of user code may raise in the middle of all this, and may itself write. CPython
runs it after a call, where a function begins and where a loop jumps back, and nowhere else. So
whatever must happen as one, such as a system call and the record of what it did, is in lines
without a call, and the system call is made by `map` as these lines iterate over it.
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
from typing import Final

from wsrelay import wire
from wsrelay.values import current, linux
from wsrelay.wire.pipe_pair import Duplex

from .short_way import CHUNK, WHOLE, ShortWay

__all__ = ["WorkerPipe"]

_KEPT: Final = 16 * 1024 * 1024
"""Bytes of freed memory that a worker keeps once it has read a large frame.

It takes three or four buffers to echo a message. When malloc gave those of 1 MiB back each time,
their 600 page faults took longer than everything else (2 ms).
"""

_LONGEST_LINE: Final = 16 * 1024 * 1024
"""Bytes in line from which on even a coroutine's plain calls wait until there is room."""


class _Waiting:
    """A frame in line: what is left to write of it, and the future to resolve when nothing is."""

    __slots__ = ("rest", "size", "written")

    def __init__(self, data: bytes) -> None:
        self.rest = memoryview(data)
        self.size = len(data)
        self.written: asyncio.Future[None] | None = None


_first = operator.itemgetter(0)
_rest = operator.attrgetter("rest")


class ShutLock:
    """A lock that cannot be acquired: it raises `NotAProcess`, as every call in a child does."""

    def acquire(self, *_: object, **__: object) -> bool:
        """Raise, saying whose child this is."""
        current.worker()
        return False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None: ...

    def release(self) -> None: ...


class WorkerPipe(ShortWay):
    """Writes and reads frames.

    When `write` returns, the operating system has the bytes, so they survive the death of this
    process (a buffer of 64 KB here would lose hundreds of messages at a SIGKILL). Any thread may
    write; one at a time may read.

    Frames that the pipe has no room for wait in one line, and so do their writers. In the thread of
    an attached event loop, writers do not wait: a thread of the pipe's own writes the frames.
    """

    def __init__(self, ends: Duplex) -> None:
        super().__init__(ends.reading, ends.writing)
        self.ends = ends
        os.set_blocking(ends.writing, False)
        self.lock = threading.RLock()  # a signal handler may write while its thread has it
        self.line: deque[_Waiting] = deque()
        """Frames that wait for room; the first may be partly written."""
        self.reads = map(os.read, itertools.repeat(ends.reading), itertools.repeat(CHUNK))
        self.arrived, self.items = deque(), deque()
        self.sleepers, self.waiters = set(), set()
        self.listeners, self.clients = {}, {}
        self.stacks = -1
        """The descriptor to which it writes its stacks when it is asked for them."""
        self._poll = select.poll()
        self._poll.register(ends.reading, select.POLLIN)
        self._reader = wire.to_worker()
        self._blocks = True
        """Whether a read waits if nothing is there."""
        self._keeps_memory = False
        """Whether freed memory is kept for the next large frame."""
        self._waiting = 0
        """Bytes in line."""
        self._written: deque[asyncio.Future[None]] = deque()
        """Futures of frames that have left the line, which are not yet resolved."""
        self._work: SimpleQueue[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Never let a write in this thread wait while the loop runs."""
        self._loop_thread = threading.get_ident()
        self._loop = loop

    def never_block(self) -> None:
        """Let reads raise `BlockingIOError` if nothing is there, which saves asking before each."""
        os.set_blocking(self.ends.reading, False)
        self._blocks = False

    def shut(self) -> None:
        """Stop writing and reading, in a child whose parent goes on using the pipe.

        The lock raises for code that still uses it, so that the check costs no other process
        anything.
        """
        self.ends.close()
        self.reading = self.writing = -1
        self.is_simple = False
        self.lock = ShutLock()

    def write(self, frame: wire.Frame) -> None:
        """Write a frame; wait while the pipe is full, except in the thread of a running event loop.

        Raises `PayloadError` for a frame that the node could not read, `OSError` if the node is
        gone. What a signal handler raises meanwhile is raised too; a frame that was partly written
        by then is still written to its end, one that was not begun is not written.
        """
        data = wire.pack_request(frame)
        if self._loop is not None and self._in_loop() and self._waiting < _LONGEST_LINE:
            self._post(data)
            return
        with self.lock:
            if len(data) <= WHOLE and not self.line:
                try:
                    os.write(self.ends.writing, data)
                except BlockingIOError:
                    pass
                else:
                    return
        self._wait_in_line(data)

    async def write_async(self, frame: wire.Frame) -> None:
        """Do what `write` does without holding up the event loop.

        A frame that is already in line is written even if its writer is cancelled.
        """
        data = wire.pack_request(frame)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.attach(loop)
        if (written := self._post(data, loop)) is not None:
            await written

    def post(self, frame: wire.Frame) -> None:
        """Write a frame without ever waiting: for signal handlers."""
        self._post(wire.pack_request(frame))

    def _in_loop(self) -> bool:
        """Whether this is the thread of the event loop, and the loop is running."""
        return (
            self._loop_thread == threading.get_ident()
            and self._loop is not None
            and self._loop.is_running()
        )

    # The line

    def _post(
        self, data: bytes, loop: asyncio.AbstractEventLoop | None = None
    ) -> asyncio.Future[None] | None:
        """Write a frame after all in line; return a future to await if it is not yet written."""
        waiting = None
        try:
            with self.lock:
                if len(data) <= WHOLE and not self.line:
                    try:
                        os.write(self.ends.writing, data)
                    except BlockingIOError:
                        pass
                    else:
                        return None
                waiting = _Waiting(data)
                self._join(waiting)
                if self.line[0] is waiting and self._advance():
                    return None
                if loop is not None:
                    waiting.written = loop.create_future()
        except BaseException:
            self._leave(waiting)
            raise
        self._write_in_thread()
        return waiting.written

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
        with self.lock:
            if waiting.size > CHUNK:
                self.ends.widen()
            self.line += (waiting,)
            self._waiting += waiting.size

    def _leave(self, waiting: _Waiting | None) -> None:
        """Stop waiting for a frame: withdraw it, unless it is partly written already."""
        with self.lock:
            if waiting is not None and waiting in self.line and waiting.rest.nbytes == waiting.size:
                self._waiting -= waiting.size
                self.line.remove(waiting)
        if self.line:
            self._write_in_thread()

    def _advance(self) -> bool:
        """Write what is in line as far as there is room; return whether all of it was written."""
        with self.lock:
            line = self.line
            try:
                while line:
                    first = map(_rest, map(_first, (line,)))  # evaluated when the write is made
                    for sent in map(os.write, (self.ends.writing,), first):
                        # There must be no call before the last line of this block.
                        waiting = line[0]
                        waiting.rest = waiting.rest[sent:]
                        self._waiting -= sent
                        if not waiting.rest:
                            del line[0]
                            if waiting.written is not None:
                                self._written += (waiting.written,)
            except BlockingIOError:
                pass
            except IndexError:
                if line:
                    raise
                # A signal handler has written the last of it.
            while self._written:
                written = self._written[0]
                _resolve(written)
                if self._written and self._written[0] is written:
                    del self._written[0]
            return not line

    def _wait_for_room(self) -> None:
        poll = select.poll()
        poll.register(self.ends.writing, select.POLLOUT)
        poll.poll()

    def _write_in_thread(self) -> None:
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
                # No thread can be started: waiting is better than never writing it.
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
            except OSError as error:  # the node is gone, and this process soon will be
                with self.lock:
                    for waiting in self.line:
                        if waiting.written is not None:
                            _resolve(waiting.written, error)
                    self.line.clear()
                    self._waiting = 0

    # Reading

    def awaits(self, timeout: float) -> bool | None:
        """Wait up to `timeout` seconds until something can be read or taken; return whether.

        None, at once, if somebody else reads. The caller takes the short way next, whose read
        wakes who waits: in between no other thread runs (see `ShortWay`), so it does not block.
        """
        if self.in_read or not self.is_simple:
            return None
        if self.items or self.data or self.arrived:
            return True
        found = None
        self.in_read = True
        try:
            found = self._poll.poll(timeout * 1000)
        finally:
            self.in_read = False
            if not found and (self.sleepers or self.waiters):
                self.wake()
        return not not found  # noqa: SIM208 - `bool` is a call

    def has_more(self) -> bool:
        """Whether there is something to read; any thread may look, whichever reads."""
        poll = select.poll()
        poll.register(self.ends.reading, select.POLLIN)
        return bool(poll.poll(0))

    def read(self, timeout: float | None) -> list[tuple[wire.ToWorker, int]]:
        """Wait up to `timeout` seconds (None: forever) for bytes and return the complete frames.

        It does not wait if some are left of what was read before.

        Raises `EOFError` if the node is gone.
        """
        if self.data and (frames := self._split()):
            return frames
        if not self.data:
            waits = self._blocks or (timeout is not None and timeout > 0)
            if waits and timeout is not None and not self._poll.poll(max(timeout, 0) * 1000):
                return []
            try:
                if self._reader.wanted > CHUNK:
                    self._read_in_place()
                else:
                    for self.data in self.reads:  # noqa: B020 - once
                        break
            except BlockingIOError:  # the event loop was quicker
                if timeout is None:
                    self._poll.poll()
                return []
            if not self.data:
                raise EOFError
        return self._split()

    def _split(self) -> list[tuple[wire.ToWorker, int]]:
        """Return the complete frames of what was read, and keep the rest for the next ones."""
        data = self.data[self.at :] if self.at else self.data
        frame = self._reader.one(data)  # as most reads bring one
        frames = self._reader.feed(data) if frame is None else [(frame, len(data))]
        # No call may follow before the frames are where they belong.
        self.has_begun = not not self._reader.rest  # noqa: SIM208 - `bool` is a call
        self.data, self.at = b"", 0
        return frames

    def _read_in_place(self) -> None:
        """Read more of a large frame, straight to where it belongs."""
        if not self._keeps_memory:
            linux.keep_freed_memory(_KEPT)
            self._keeps_memory = True
        space = self._reader.space()
        for size in map(os.readv, (self.ends.reading,), ((space,),)):
            self.data = space[:size]
            if size == len(space):
                self.ends.narrow()


def _resolve(written: asyncio.Future[None], error: OSError | None = None) -> None:
    """Let the coroutine that awaits this future go on; from any thread."""

    def resolve() -> None:
        if written.done():
            return
        if error is None:
            written.set_result(None)
        else:
            written.set_exception(error)

    try:
        written.get_loop().call_soon_threadsafe(resolve)
    except RuntimeError:
        pass  # the loop is closed, and nothing waits any more
