"""The node's end of a worker's pipe: never waits, two lanes out."""

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
from typing import Final

from wsrelay import wire
from wsrelay.errors import WireError
from wsrelay.values.message import ExitError, ExitKind
from wsrelay.values.printable import shortened
from wsrelay.values.sizes import ITEM, show
from wsrelay.wire.pipe_pair import Duplex

from .unfinished import LARGE, Account, Share, Unfinished

__all__ = ["NodePipe"]

_CHUNK: Final = 64 * 1024
"""Bytes of one read; more than 128 KiB would be mapped and unmapped by malloc each time."""

_TURN: Final = 0.0005
"""Seconds that the frames of one worker take in a turn of the event loop, and the last of them.

A worker can write thousands of small frames at once, each of which makes work, and everyone else
waits meanwhile: where all of 64 KB came in one turn a neighbour's echo took 12 ms.
"""

_AT_ONCE: Final = 128
"""Frames that are decoded at once."""

_DONE: Final = object()

_GATHERED: Final = 64
"""Frames of one write; IOV_MAX is 1024."""

_FLOOD: Final = 16 * 1024 * 1024
"""Bytes of replies and events that may wait; a hundred thousand of them."""

_RESULT: Final = 1024
"""Bytes that an event or the end of an `exec` counts for at most: a result's size is for who
returns it to choose, and there is one for each process that was asked about."""

_RESULTS: Final = 4 * wire.MAX_FRAME
"""Bytes that may wait with them: of what ends then the result is left out, but not the end."""

_FULL: Final = 64 * 1024
"""Bytes waiting for a worker from which on its clients are not read any more."""


class NodePipe:
    """Frames to and from one worker.

    `post` is for what may overtake (events, replies); `queue` keeps order and sends only what the
    worker has room for: at most `wire.WINDOW` bytes and one frame ahead of what it has taken.
    `receive` is called with each frame, and returns an iterator where the frame makes work in
    portions: that is done before the next frame. What all of it takes is cut into turns, so that a
    worker that makes much work is the only one who waits for it. `garbage` is called once if the
    worker writes what is no frame, `flooded` once if more replies and events wait for it than it
    will ever read. `account` has the room for large frames; while there is none for one that has
    begun, nothing is read.
    """

    def __init__(
        self,
        ends: Duplex,
        receive: Callable[[wire.FromWorker], Iterator[None] | None],
        garbage: Callable[[str], None],
        flooded: Callable[[], None],
        account: Account | None = None,
    ) -> None:
        self.queued = 0
        """Data frames queued so far: the number of the newest one."""
        self.backlog = 0
        """Bytes of data that wait here for room at the worker, `ITEM` for each frame included."""
        self.mailbox = 0
        """The part of the backlog that other processes sent."""
        self.visits = 0
        """The part of the backlog that tells of clients who come and go."""
        self._ends = ends
        os.set_blocking(ends.reading, False)
        os.set_blocking(ends.writing, False)
        self._loop = asyncio.get_running_loop()
        self._receive = receive
        self._garbage = garbage
        self._flooded = flooded
        self._posted = 0
        """Bytes of replies and events that wait behind others."""
        self._reader = wire.from_worker()
        self._account = account or Unfinished().account("a worker", garbage)
        self._share: Share | None = None
        """Room for the large frame that has begun, until it is received and its work is done."""
        self._in_flight = 0
        self._taken = 0
        """Bytes of data that the worker has taken so far."""
        self._waiting: deque[tuple[bytes, bool, bool]] = deque()
        """Data frames, each with `mail` and `visit` of `queue`."""
        self._out: deque[bytes | memoryview] = deque()
        self._outgoing = 0
        """Bytes of them."""
        self._counts: deque[int] = deque()
        """For each of them what it adds to `_posted`."""
        self._arrived: deque[tuple[wire.FromWorker, int]] = deque()
        """Frames that are not received yet because of a hold, or because their turn comes."""
        self._work: Iterator[None] | None = None
        """What is left to do for the frame that was received last."""
        self._next_turn: asyncio.Handle | None = None
        self._seconds = _TURN
        self._left = 0
        """Bytes that a dead worker has left in the pipe."""
        self._when_over: Callable[[], None] | None = None
        """Whom to tell when they are taken in."""
        self._holds: set[Hashable] = set()
        self.reads = 0
        """How often it was read from."""
        self._at_end = False
        self._broken = False
        self._closed = False
        self._when_room: dict[Hashable, Callable[[], None]] = {}
        self._loop.add_reader(ends.reading, self._readable)

    # Out

    def post(self, frame: wire.Frame) -> None:
        """Send a frame ahead of all waiting data."""
        data = wire.pack(frame)
        size = len(data)
        if not isinstance(frame, wire.ReplyFrame):
            if size > _RESULT and self._outgoing + size > _RESULTS:
                data = wire.pack(_without_result(frame))
            size = min(size, _RESULT)
        before = self._posted
        self._write(data, size + ITEM)
        if self._posted > _FLOOD >= before:
            self._flooded()

    def queue(self, frame: wire.Frame | bytes, *, mail: bool = False, visit: bool = False) -> int:
        """Send a data frame in its turn; returns its number.

        One that goes to many may be packed already. `mail`: it counts as mailbox; `visit`: it tells
        of a client who comes or goes.
        """
        self.queued += 1
        if self._closed:
            return self.queued  # nobody will take it, and nobody is to wait for room for it
        data = frame if isinstance(frame, bytes) else wire.pack(frame)
        if self._waiting or self._in_flight >= wire.WINDOW:
            self._waiting.append((data, mail, visit))
            self._count(len(data) + ITEM, mail, visit)
        else:
            self._in_flight += len(data)
            self._write(data)
        return self.queued

    def _count(self, size: int, mail: bool, visit: bool) -> None:
        self.backlog += size
        if mail:
            self.mailbox += size
        elif visit:
            self.visits += size

    def taken(self, total: int) -> None:
        """Learn that the worker has taken so many bytes of data in all.

        Raises `WireError` for more than it was sent: it would never be waited for again.
        """
        size = total - self._taken
        if total < 0 or size > self._in_flight:
            raise WireError(f"{size} bytes are said to be taken, {self._in_flight} were sent")
        if size <= 0:
            return  # two of its threads have told it, the later one first
        self._taken = total
        self._in_flight -= size
        while self._waiting and self._in_flight < wire.WINDOW:
            data, mail, visit = self._waiting.popleft()
            self._count(-len(data) - ITEM, mail, visit)
            self._in_flight += len(data)
            self._write(data)
        if self._when_room:
            self._tell_room()

    @property
    def full(self) -> bool:
        """Whether the worker's clients should wait."""
        return self.backlog >= _FULL

    def when_room(self, token: Hashable, callback: Callable[[], None]) -> None:
        """Call back, once, when there is room for clients' messages, or the worker is gone.

        One callback for each token, until `forget` of it.
        """
        self._when_room[token] = callback
        self._tell_room()

    def forget(self, token: Hashable) -> None:
        """Call whoever waits under that token back no more."""
        self._when_room.pop(token, None)

    def _tell_room(self) -> None:
        if not self.full:
            callbacks, self._when_room = self._when_room, {}
            for callback in callbacks.values():
                callback()

    def _write(self, data: bytes, count: int = 0) -> None:
        if self._closed:
            return  # an answer that comes after its worker's end
        if not self._out:
            try:
                sent = os.write(self._ends.writing, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # the worker is dying; its exit is announced by the kernel
            if sent == len(data):
                return
            self._loop.add_writer(self._ends.writing, self._flush)
            self._out.append(memoryview(data)[sent:] if sent else data)
            self._outgoing = len(data) - sent
            self._counts.append(0)  # nothing waits but this, however large: it is being read
        else:
            self._out.append(data)
            self._outgoing += len(data)
            self._counts.append(count)
            self._posted += count

    def _flush(self) -> None:
        """Write as much of what waits as the worker takes, many frames at once."""
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

    def hold(self, token: Hashable) -> None:
        """Read nothing more, so that the worker's writes wait, until `release` of the token."""
        self._holds.add(token)
        if not self._at_end:
            self._loop.remove_reader(self._ends.reading)

    def release(self, token: Hashable) -> None:
        """Undo `hold`; the last token starts the reading again."""
        if token in self._holds:
            self._holds.discard(token)
            if not self._holds and not self._at_end:
                self._loop.add_reader(self._ends.reading, self._readable)
                # Not here: the caller may stand inside of a frame's delivery.
                self._come_back()

    def take_in(self) -> bool:
        """Receive what is there, before the loop comes to it; returns whether that is all for now.

        What is held, by a slow client for example, is not waited for.
        """
        if not self._holds and not self._at_end:
            self._readable()
        return self._next_turn is None or bool(self._holds)

    def _readable(self) -> None:
        if self._next_turn is not None or self._holds:  # uvloop comes here before `hold` works
            return
        try:
            data = os.read(self._ends.reading, _CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._take_in(data)
        else:
            # Closed by the worker; whether it ended, and how, is not for the pipe to say.
            self._at_end = True
            self._loop.remove_reader(self._ends.reading)
            self._drop_partial()

    def _come_back(self) -> None:
        """Go on in the next turn of the event loop."""
        if self._next_turn is None:
            self._next_turn = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._next_turn = None
        if self._when_over is None:
            self._take_in(b"")
        else:
            self._take_the_rest()

    def _take_in(self, data: bytes) -> None:
        """Receive the frames that are complete, as far as nothing holds them and for a turn.

        While some are left nothing is read: `data` is empty as long as there are such.
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
                elif len(frames) == 1 and not self._reader.partial:  # as it is most of the time
                    self._work = self._receive(frames[0][0])
                    if self._work is None:
                        return
                else:
                    self._arrived += frames
            self._receive_arrived()
            self._reserve()
        except WireError as error:
            self._at_end = self._broken = True
            self._loop.remove_reader(self._ends.reading)
            self._drop_partial()
            self._garbage(str(error))

    def _reserve(self) -> None:
        """Give back the room of a large frame that was received; have some for one that has begun.

        Not while a client holds the pipe: who has room is read, and need not wait for anybody.
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
        """Keep nothing of a frame of which no more comes, or which is none."""
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
            elif reader.partial:  # it raises where more bytes would not make it a frame
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
        """Take in what the dead worker left in the pipe, close, and call `over`.

        Reads what is there now and no more: a grandchild may hold the other end and write on. All
        of that happens before this returns, unless it takes more than a turn.
        """
        self._at_end = True
        self._loop.remove_reader(self._ends.reading)
        left = array.array("i", [0])
        fcntl.ioctl(self._ends.reading, termios.FIONREAD, left)
        self._left, self._when_over = left[0], over
        if self._next_turn is None:
            self._take_the_rest()

    def take_in_at_once(self) -> None:
        """Take in what is left at once: there are no turns any more."""
        self._seconds = math.inf
        if self._when_over is not None and self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
            self._take_the_rest()

    def _take_the_rest(self) -> None:
        """Take in what is left, for a turn; what stands behind a hold is wanted all the same."""
        data, end = b"", time.perf_counter() + self._seconds
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
        """Let go of the descriptor; queued data is dropped."""
        self._at_end = self._closed = True
        self._when_over = None
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        self._loop.remove_reader(self._ends.reading)
        self._loop.remove_writer(self._ends.writing)
        self._ends.close()
        self._out.clear()
        self._counts.clear()
        self._waiting.clear()
        self.backlog = self.mailbox = self.visits = 0
        if self._when_room:
            self._tell_room()
        self._drop_partial()


def _without_result(frame: wire.Frame) -> wire.Frame:
    """Return the frame of an end with its kind and a short message in the place of the result."""
    if (
        isinstance(frame, wire.SignalFrame | wire.FinishedFrame)
        and (ended := frame.result) is not None
    ):
        error = ended.error
        if error is None:
            said = f"{show(_RESULTS)} of results wait for this process already"
            size = len(ended.value)
            error = ExitError(ExitKind.LIMIT, f"its result of {size} bytes is left out: {said}")
        frame.result = wire.PackedResult(b"\xc0", ExitError(error.kind, shortened(error.message)))
    return frame
