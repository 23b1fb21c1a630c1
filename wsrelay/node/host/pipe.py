"""The node's end of a worker's pipe: it never waits, and has two lanes out."""

from __future__ import annotations

import array
import asyncio
import fcntl
import itertools
import math
import os
import termios
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from select import PIPE_BUF
from typing import Final

from wsrelay import wire
from wsrelay.errors import WireError
from wsrelay.wire.pipe_pair import Duplex

from .lanes import Lanes, LanesTap
from .unfinished import LARGE, Account, Share, Unfinished

__all__ = ["NodePipe"]

_CHUNK: Final = 64 * 1024
"""Bytes of one read; malloc would map and unmap more than 128 KiB each time."""

_TURN: Final = 0.0005
"""Seconds after which the frames of one worker wait for the event loop's next iteration.

A worker can write thousands of small frames at once, each of which causes work for which all others
wait: when 64 KB were handled in one iteration, a neighbour's echo took 12 ms.
"""

_AT_ONCE: Final = 128
"""Frames that are decoded at once."""

_BEGIN: Final = object()
"""Holds a pipe until it is begun."""

_DONE: Final = object()

_GATHERED: Final = 64
"""Frames per write; IOV_MAX is 1024."""


class NodePipe(Lanes):
    """Frames to and from one worker.

    `receive` is called with each frame, and returns an iterator if the frame causes work in
    portions, which is done before the next frame. The work is cut into turns, so that only the
    worker that causes it waits for it. `garbage` is called once if the worker writes something that
    is not a frame. `account` grants the room for large frames; while it has none for a frame that
    has begun, nothing is read. One that is not `begun` is not read before `begin`.
    """

    def __init__(
        self,
        ends: Duplex,
        receive: Callable[[wire.FromWorker], Iterator[None] | None],
        garbage: Callable[[str], None],
        flooded: Callable[[], None],
        account: Account | None = None,
        *,
        begun: bool = True,
    ) -> None:
        super().__init__(flooded)
        self._ends = ends
        self._reading, self._writing = ends.reading, ends.writing
        os.set_blocking(ends.reading, False)
        os.set_blocking(ends.writing, False)
        self._loop = asyncio.get_running_loop()
        self._receive = self._untapped = receive
        self._garbage = garbage
        self._reader = wire.from_worker()
        self._account = account or Unfinished().account("a worker", garbage)
        self._share: Share | None = None
        """Room for the large frame that has begun, until it is received and its work is done."""
        self._arrived: deque[tuple[wire.FromWorker, int]] = deque()
        """Frames that wait to be received, because of a hold or for the next turn."""
        self._work: Iterator[None] | None = None
        """The rest of the work for the frame that was received last."""
        self._next_turn: asyncio.Handle | None = None
        self._seconds = _TURN
        self._left = 0
        """Bytes that a dead worker left in the pipe and that have not been read yet."""
        self._when_over: Callable[[], None] | None = None
        """What to call when they have been received."""
        self._holds: set[Hashable] = set() if begun else {_BEGIN}
        self.is_shut = False
        """Whether everything that is to be written is kept."""
        self.reads = 0
        """How many reads have brought data."""
        self._at_end = False
        self._broken = False
        if begun:
            self._loop.add_reader(ends.reading, self._readable)

    # Out

    def relay(self, data: bytes | memoryview) -> bool:
        """Do what `queue` does with a client's message, but quickly if nothing is in the way.

        Returns whether there is room for another.
        """
        if (
            len(data) <= PIPE_BUF  # so it is written as a whole or not at all
            and not self._waiting
            and not self._out
            and self._in_flight < wire.WINDOW
            and not self._closed
        ):
            try:
                os.write(self._writing, data)
            except OSError:
                pass  # it is full, or the worker is dying
            else:
                self._in_flight += len(data)
                self.queued += 1
                return True
        self.queue(data)
        return not self.full

    def _write(self, data: bytes | memoryview, count: int = 0) -> None:
        if self._closed:
            return  # an answer that is too late: its worker has ended
        size = len(data)
        if size > _CHUNK:
            self._ends.widen()
        if not self._out:
            try:
                sent = os.write(self._ends.writing, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # the worker is dying; its exit is announced by the kernel
            if sent == size:
                return
            self._loop.add_writer(self._ends.writing, self._flush)
            self._out.append(memoryview(data)[sent:] if sent else data)
            self._outgoing = size - sent
            self._counts.append(0)  # nothing else waits: this is being read, however large it is
        else:
            super()._write(data, count)

    def shut(self) -> None:
        """Keep everything that is to be written until `open`; nothing has been written yet."""
        self.is_shut = True
        self._out.append(b"")  # all that follows waits behind it
        self._counts.append(0)

    def open(self) -> None:
        """Write what was kept since `shut`."""
        self.is_shut = False
        if not self._closed:
            self._loop.add_writer(self._ends.writing, self._flush)
            self._flush()

    def _flush(self) -> None:
        """Write as much of what waits as the pipe takes, many frames at once."""
        try:
            while self._out:
                sent = os.writev(self._ends.writing, list(itertools.islice(self._out, _GATHERED)))
                self._outgoing -= sent
                while self._out and sent >= len(self._out[0]):
                    sent -= len(self._out.popleft())
                    self._posted -= self._counts.popleft()
                if sent:
                    self._out[0] = memoryview(self._out[0])[sent:]
        except BlockingIOError:
            return
        except OSError:
            self._out.clear()
            self._counts.clear()
            self._posted = self._outgoing = 0
        self._loop.remove_writer(self._ends.writing)

    # In

    def tap(self, tap: LanesTap | None) -> None:
        """Do what `Lanes.tap` does, and have the tap see what is received."""
        super().tap(tap)
        receive = self._receive = self._untapped
        if tap is None:
            return

        def tapped(frame: wire.FromWorker) -> Iterator[None] | None:
            tap.received(frame)
            return receive(frame)

        self._receive = tapped

    def begin(self) -> None:
        """Begin to read."""
        self._holds.discard(_BEGIN)
        if not self._holds and not self._at_end:
            self._loop.add_reader(self._ends.reading, self._readable)

    def hold(self, token: Hashable) -> None:
        """Stop reading until `release` of the token, so that the worker's writes wait."""
        self._holds.add(token)
        if not self._at_end:
            self._loop.remove_reader(self._ends.reading)

    def release(self, token: Hashable) -> None:
        """Undo `hold`; releasing the last token resumes reading."""
        if token in self._holds:
            self._holds.discard(token)
            if not self._holds and not self._at_end:
                self._loop.add_reader(self._ends.reading, self._readable)
                # Not right now: the caller may be in the middle of delivering a frame.
                self._come_back()

    def take_in(self) -> bool:
        """Receive what has arrived, ahead of the loop; returns whether nothing is left for now.

        It does not wait for what is held, for example by a slow client.
        """
        if not self._holds and not self._at_end:
            self._readable()
        return self._next_turn is None or bool(self._holds)

    def _readable(self) -> None:
        # uvloop may still call this after `remove_reader`.
        if self._next_turn is not None or self._holds or self._at_end:
            return
        try:
            if self._reader.wanted > _CHUNK:
                data: bytes | memoryview = self._read_in_place()
            else:
                data = os.read(self._reading, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if (frame := self._reader.one(data)) is not None:  # as it is most of the time
            self.reads += 1
            try:
                self._work = self._receive(frame)
            except WireError as error:
                self._end_as_garbage(error)
            else:
                if self._work is not None:
                    self._take_in(b"")
        elif data:
            self._take_in(data)
        else:
            # Closed by the worker; the pipe cannot tell whether it has ended, or how.
            self._at_end = True
            self._loop.remove_reader(self._ends.reading)
            self._drop_partial()

    def _read_in_place(self) -> memoryview:
        """Read more of a large frame that has begun, straight to where it belongs."""
        space = self._reader.space()
        read = os.readv(self._ends.reading, (space,))
        if read == len(space):
            self._ends.narrow()
        return space[:read]

    def _come_back(self) -> None:
        """Go on in the next iteration of the event loop."""
        if self._next_turn is None:
            self._next_turn = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._next_turn = None
        if self._when_over is None:
            self._take_in(b"")
        else:
            self._take_the_rest()

    def _take_in(self, data: bytes | memoryview) -> None:
        """Receive the complete frames, until something holds them or the turn is over.

        While some are left nothing more is read: `data` is empty until they have been received.
        """
        if self._broken:
            return
        try:
            if data:
                self.reads += 1
                frames = self._reader.feed(data, _AT_ONCE)
                if self._share is not None:
                    self._share.is_whole = bool(frames)
                self._arrived += frames
            self._receive_arrived()
            self._reserve()
        except WireError as error:
            self._end_as_garbage(error)

    def _end_as_garbage(self, error: WireError) -> None:
        self._at_end = self._broken = True
        self._loop.remove_reader(self._ends.reading)
        self._drop_partial()
        self._garbage(str(error))

    def _reserve(self) -> None:
        """Give back the room of a large frame that was received; request it for one that has begun.

        Not while a client holds the pipe: a frame with room must be read without waiting for
        anybody.
        """
        if self._next_turn is not None:
            return
        if self._share is not None and self._share.is_whole:
            self._give_back(self._share)
        size = self._reader.wanted
        if size > LARGE and self._share is None and not self._holds and not self._at_end:
            self._share = share = self._account.begin(size, self._progress, self.release)
            if not share.is_granted:
                self.hold(share)

    def _progress(self) -> int | None:
        is_read = self._share is not None and not self._share.is_whole and not self._holds
        return self._reader.partial if is_read else None

    def _give_back(self, share: Share) -> None:
        self._share = None
        self._holds.discard(share)
        share.give_back()

    def _drop_partial(self) -> None:
        """Discard a partial frame that will not be completed, or that is not a frame."""
        self._reader.drop()
        if self._share is not None:
            self._give_back(self._share)

    def _receive_arrived(self) -> None:
        arrived, reader, end = self._arrived, self._reader, 0.0
        while True:
            if self._work is not None:
                if next(self._work, _DONE) is _DONE:
                    self._work = None
            elif self._holds:
                return
            elif arrived:
                frame, _ = arrived.popleft()
                self._work = self._receive(frame)
            elif reader.partial:  # raises if no further bytes could make it a frame
                arrived += reader.feed(b"", _AT_ONCE)
                if not arrived:
                    return
            else:
                return
            if self._work is not None or arrived or reader.partial:
                now = time.perf_counter()
                end = end or now + self._seconds
                if now >= end:
                    self._come_back()
                    return

    def finish(self, over: Callable[[], None]) -> None:
        """Receive what the dead worker left in the pipe, close, and call `over`.

        Reads only what is there now: a grandchild may hold the other end and keep writing. All of
        that happens before this returns, unless it takes more than a turn.
        """
        self._at_end = True
        self._loop.remove_reader(self._ends.reading)
        left = array.array("i", [0])
        fcntl.ioctl(self._ends.reading, termios.FIONREAD, left)
        self._left, self._when_over = left[0], over
        if self._next_turn is None:
            self._take_the_rest()

    def take_in_at_once(self) -> None:
        """Receive what is left at once, without turns."""
        self._seconds = math.inf
        if self._when_over is not None and self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
            self._take_the_rest()

    def _take_the_rest(self) -> None:
        """Receive what is left, for a turn; holds are ignored."""
        data: bytes | memoryview = b""
        end = time.perf_counter() + self._seconds
        while not self._broken:
            self._holds.clear()
            self._take_in(data)
            if self._next_turn is not None:
                return
            if (data or self._holds) and time.perf_counter() >= end:
                self._come_back()
                return
            data = b""
            if self._holds:
                continue
            if self._left <= 0 or self._left < self._reader.missing:
                break
            try:
                if self._reader.wanted > _CHUNK:
                    data = self._read_in_place()
                else:
                    data = os.read(self._ends.reading, min(self._left, _CHUNK))
            except OSError:
                break
            if not data:
                break
            self._left -= len(data)
        over = self._when_over
        self.close()
        if over is not None:
            over()

    def close(self) -> None:
        """Close the descriptors; queued data is dropped."""
        self._at_end = True
        self._when_over = None
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        self._loop.remove_reader(self._ends.reading)
        self._loop.remove_writer(self._ends.writing)
        self._ends.close()
        self._reading = self._writing = -1
        super().close()
        self._drop_partial()
