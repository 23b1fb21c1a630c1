"""The two lanes to a worker: what may overtake, and data, which keeps its order and has bounds."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from wsrelay import wire
from wsrelay.errors import WireError
from wsrelay.values.message import ExitError, ExitKind
from wsrelay.values.printable import shortened
from wsrelay.values.sizes import ITEM, show

__all__ = ["Lanes", "LanesTap"]

_FLOOD: Final = 16 * 1024 * 1024
"""Bytes of replies and events that may wait: a hundred thousand of them."""

_RESULT: Final = 1024
"""Bytes that an event or the end of an `exec` counts for at most: the size of a result is chosen by
the process that returns it, and there is one for each process that was asked about."""

_RESULTS: Final = 4 * wire.MAX_FRAME
"""Bytes that may wait, results included: beyond that an end is reported without its result."""

_FULL: Final = 64 * 1024
"""Bytes waiting for a worker from which on its clients are no longer read."""


class LanesTap(Protocol):
    """Sees what passes between the node and one worker."""

    def sent(self, frame: wire.Frame | bytes | memoryview) -> None:
        """See what the worker is sent, except mail that is packed already."""

    def received(self, frame: wire.FromWorker) -> None:
        """See what the worker has written, before that is done."""


class Lanes:
    """What a worker is sent: without a pipe it is kept, for `hand_over` to the pipe.

    `post` is for what may overtake (events, replies); `queue` keeps order and sends only what the
    worker has room for: at most `wire.WINDOW` bytes and one frame ahead of what it has
    acknowledged. `flooded` is called once if more replies and events wait for it than it will ever
    read.
    """

    def __init__(self, flooded: Callable[[], None] = lambda: None) -> None:
        self.queued = 0
        """Data frames queued so far: the number of the newest one."""
        self.silent = 0
        """How many of them bring the process nothing that it takes."""
        self.backlog = 0
        """Bytes of data that wait here for room at the worker, including `ITEM` for each frame."""
        self.mailbox = 0
        """The part of the backlog that other processes sent."""
        self.visits = 0
        """The part of the backlog that reports clients joining and leaving."""
        self._flooded = flooded
        self._posted = 0
        """Bytes of replies and events that wait behind others."""
        self._in_flight = 0
        self._taken = 0
        """Bytes of data that the worker has acknowledged so far."""
        self._waiting: deque[tuple[bytes | memoryview, bool, bool]] = deque()
        """Data frames, each with `mail` and `visit` of `queue`."""
        self._out: deque[bytes | memoryview] = deque()
        """What may be sent, as soon as the pipe takes it."""
        self._outgoing = 0
        """Bytes in `_out`."""
        self._counts: deque[int] = deque()
        """For each entry of `_out`, what it adds to `_posted`."""
        self._closed = False
        self._tap: LanesTap | None = None
        self._when_room: dict[Hashable, Callable[[], None]] = {}

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

    def queue(
        self, frame: wire.Frame | bytes | memoryview, *, mail: bool = False, visit: bool = False
    ) -> int:
        """Send a data frame in its turn; returns its number.

        A frame for many receivers may be packed already. `mail`: it counts as mailbox; `visit`: it
        reports a client that joins or leaves. Who queues one that is not taken, such as
        `AttachFrame`, adds it to `silent`.
        """
        self.queued += 1
        if self._closed:
            return self.queued  # nobody will read it, and nobody must wait for its room
        data = wire.pack(frame) if isinstance(frame, wire.Frame) else frame
        if self._waiting or self._in_flight >= wire.WINDOW:
            self._waiting.append((data, mail, visit))
            self._count(len(data) + ITEM, mail, visit)
        else:
            self._in_flight += len(data)
            self._write(data)
        return self.queued

    def relay(self, data: bytes | memoryview) -> bool:
        """Do what `queue` does with a client's message; returns whether there is room for more."""
        self.queue(data)
        return not self.full

    def _count(self, size: int, mail: bool, visit: bool) -> None:
        self.backlog += size
        if mail:
            self.mailbox += size
        elif visit:
            self.visits += size

    def taken(self, total: int) -> None:
        """Handle the worker's acknowledgement of `total` bytes of data since its start.

        Raises `WireError` for more than it was sent: the node would never wait for it again.
        """
        size = total - self._taken
        if total < 0 or size > self._in_flight:
            raise WireError(f"{size} bytes were acknowledged, but {self._in_flight} were sent")
        if size <= 0:
            return  # two of its threads acknowledged, the later one first
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
    def kept(self) -> int:
        """How many data frames wait here."""
        return len(self._waiting)

    @property
    def full(self) -> bool:
        """Whether the worker's clients should wait."""
        return self.backlog >= _FULL

    def when_room(self, token: Hashable, callback: Callable[[], None]) -> None:
        """Call back once, when there is room for clients' messages or the worker is gone.

        There is one callback for each token; `forget` drops it.
        """
        self._when_room[token] = callback
        self._tell_room()

    def forget(self, token: Hashable) -> None:
        """Drop the callback that has that token."""
        self._when_room.pop(token, None)

    def _tell_room(self) -> None:
        if not self.full:
            callbacks, self._when_room = self._when_room, {}
            for callback in callbacks.values():
                callback()

    def _write(self, data: bytes | memoryview, count: int = 0) -> None:
        """Send it as soon as possible; it adds `count` to what was posted and waits."""
        self._out.append(data)
        self._outgoing += len(data)
        self._counts.append(count)
        self._posted += count

    def tap(self, tap: LanesTap | None) -> None:
        """Have a tap see everything from now on; None: nobody.

        While nobody does, that costs nothing: methods of this one object are replaced.
        """
        self._tap, own, kind = tap, vars(self), type(self)
        for name in ("post", "queue", "relay"):
            own.pop(name, None)
        if tap is None:
            return

        def post(frame: wire.Frame) -> None:
            tap.sent(frame)
            kind.post(self, frame)

        def queue(
            frame: wire.Frame | bytes | memoryview, *, mail: bool = False, visit: bool = False
        ) -> int:
            if not mail or isinstance(frame, wire.Frame):
                tap.sent(frame)
            return kind.queue(self, frame, mail=mail, visit=visit)

        # That of `Lanes`, by which `queue` is called once.
        own.update(post=post, queue=queue, relay=functools.partial(Lanes.relay, self))

    def hand_over(self, to: Lanes) -> None:
        """Pass everything on to a pipe that has just been opened; these lanes end."""
        if (tap := self._tap) is not None:
            self.tap(None)
            to.tap(tap)
        for data, count in zip(self._out, self._counts, strict=True):
            to._write(data, count)
        to.queued, to.silent, to.backlog = self.queued, self.silent, self.backlog
        to.mailbox, to.visits = self.mailbox, self.visits
        to._in_flight, to._waiting = self._in_flight, self._waiting
        to._when_room = self._when_room

    def close(self) -> None:
        """Drop what was queued; nobody must wait for room any more."""
        self._closed = True
        self._out.clear()
        self._counts.clear()
        self._waiting.clear()
        self.backlog = self.mailbox = self.visits = 0
        if self._when_room:
            self._tell_room()


def _without_result(frame: wire.Frame) -> wire.Frame:
    """Return the frame of an end with its kind and a short message in place of the result."""
    if (
        isinstance(frame, wire.SignalFrame | wire.FinishedFrame)
        and (ended := frame.result) is not None
    ):
        error = ended.error
        if error is None:
            why = f"{show(_RESULTS)} of results wait for this process already"
            size = len(ended.value)
            error = ExitError(ExitKind.LIMIT, f"its result of {size} bytes is left out: {why}")
        frame.result = wire.PackedResult(b"\xc0", ExitError(error.kind, shortened(error.message)))
    return frame
