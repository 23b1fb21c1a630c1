"""The driver of one link: gathers what a turn sends, keeps its times, and takes frames in turns."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Final

from wsrelay.cluster.ending import END, Ending, why_ended
from wsrelay.cluster.frames import PeerFrame
from wsrelay.cluster.framing import pack, unpack
from wsrelay.cluster.link import WINDOW, Link, LinkStatistics
from wsrelay.cluster.ports import Bus
from wsrelay.errors import WireError
from wsrelay.node.info import LinkTraffic
from wsrelay.values.sizes import ITEM

__all__ = ["PeerLink", "Receive"]

_TURN: Final = 0.0005
"""Seconds for which the frames of one node are handled in an iteration of the event loop; see
`node/host/pipe.py`."""

_MOST: Final = 2 * WINDOW
"""Bytes of publishes that wait for their turn, with `ITEM` for each: all that can be under way, and
once more after a reconnect. What comes beyond that is dropped, and published again later."""

_DONE: Final = object()

Receive = Callable[[PeerFrame], Iterator[None] | None]
"""Is called with each frame. It returns an iterator if that is work in portions, which is done
before the next frame is handled; it raises `WireError` for what no node of ours writes."""


class PeerLink:
    """The link to one incarnation of another node.

    `broken` is called once, with a description, if that node sends what no node of ours does, or
    has ended the link because this one did. Then nothing is sent or handled any more, and the other
    node is told so until it has ended the link too, or this one is closed. A publish counts as
    received when its frames are about to be handled, so a node that sends faster than this one
    handles has to wait. `clock` measures turns.
    """

    def __init__(
        self,
        bus: Bus,
        subject: str,
        receive: Receive,
        broken: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._link = Link()
        self._bus = bus
        self._subject = subject
        self._receive = receive
        self._broken = broken
        self._clock = clock
        self._closed = False
        """Whether no frames are sent or handled any more."""
        self._ending: Ending | None = None
        self._published = 0
        """The frames that had been published when it was closed."""
        self._carried = LinkTraffic()
        """What it had carried by then."""
        self._next_turn: asyncio.Handle | None = None
        self._turn_ends: float | None = None
        """When to stop handling frames in this iteration of the loop; None before the first."""
        self._timer: asyncio.Handle | None = None
        self._timer_at = math.inf
        """When it is due; uvloop's timers cannot always tell."""
        self._publishes: deque[bytes] = deque()
        """Those that wait for their turn."""
        self._size = 0
        """Bytes of these, with `ITEM` for each."""
        self._frames: deque[bytes | memoryview] = deque()
        """Those of the publish that is being handled."""
        self._work: Iterator[None] | None = None
        """The rest of the work for the frame that was handled last."""
        self._when_room: dict[Hashable, Callable[[], None]] = {}
        self.dropped = 0
        """Publishes for which there was no room."""
        if bus.connected:
            self.connected()

    # The bus

    def connected(self) -> None:
        """Note that the bus has connected."""
        self._link.connected()
        self._soon()
        self._say_end()

    def disconnected(self) -> None:
        """Note that the bus has lost its connection."""
        self._link.disconnected()

    def limit(self, window: int) -> None:
        """Limit the bytes that may be under way."""
        self._link.window = window
        self._soon()

    # Out

    @property
    def full(self) -> bool:
        """Whether senders in workers should wait."""
        return self._link.full

    @property
    def busy(self) -> bool:
        """Whether senders that cannot wait should be refused, with `NodeBusy`."""
        return self._link.busy

    @property
    def idle(self) -> bool:
        """Whether the other node has received all that was sent."""
        return self._closed or self._link.idle

    @property
    def sent(self) -> int:
        """Which number the frame has that was sent last."""
        return self._published + 1 if self._closed else self._link.taken

    @property
    def published(self) -> int:
        """Up to which number the other node may have received frames."""
        return self._published if self._closed else self._link.published

    @property
    def backlog(self) -> int:
        """Bytes of frames that wait here."""
        return self._link.backlog

    @property
    def is_connected(self) -> bool:
        """Whether what is sent is carried now."""
        return self._bus.connected

    @property
    def delay(self) -> float:
        """Seconds for which nothing under way has been acknowledged; 0 if nothing is."""
        if not self._link.statistics().unacknowledged:
            return 0.0
        return max(0.0, self._clock() - self._link.progress_at)

    def statistics(self) -> LinkStatistics:
        """Return the counts of now."""
        return self._link.statistics()

    @property
    def traffic(self) -> LinkTraffic:
        """What it has carried."""
        if self._closed:
            return self._carried
        counts = self._link.statistics()
        return LinkTraffic(counts.sent, counts.resent, counts.received)

    def send(self, frame: PeerFrame | bytes) -> None:
        """Send a frame; one for several nodes may be packed already. It never waits.

        Raises `PayloadError` for a frame that is too large. Frames to a link that is closed are
        dropped.
        """
        if self._closed:
            return
        self._link.send(frame if isinstance(frame, bytes) else pack(frame))
        if self._link.full:
            self._flush()  # what fills a publish need not wait for more
        elif self._next_turn is None:
            self._soon()

    def when_room(self, token: Hashable, callback: Callable[[], None]) -> None:
        """Call back once, when senders need not wait any more or the link is closed.

        There is one callback for each token; `forget` drops it.
        """
        self._when_room[token] = callback
        self._tell_room()

    def forget(self, token: Hashable) -> None:
        """Drop the callback that has that token."""
        self._when_room.pop(token, None)

    def _tell_room(self) -> None:
        if self._closed or not self._link.full:
            callbacks, self._when_room = self._when_room, {}
            for callback in callbacks.values():
                callback()

    def _soon(self) -> None:
        if self._next_turn is None and not self._closed:
            self._next_turn = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Go on in a new iteration of the loop: first with what has come, since it is answered."""
        self._next_turn = self._turn_ends = None
        try:
            self._handle()
        finally:
            self._flush()

    def _flush(self, now: float | None = None) -> None:
        if self._closed or not self._bus.connected:  # `disconnected` is about to be called
            return
        link = self._link
        now = self._loop.time() if now is None else now
        for publish in link.flush(now):
            self._bus.publish(self._subject, publish)
        if self._when_room:
            self._tell_room()
        due = link.due()
        if due is None:
            return
        if due <= now:
            self._soon()  # a callback has sent
        elif due < self._timer_at:
            # A timer that is too early is left as it is: most things are done before they are due.
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._timer_at = self._loop.call_at(due, self._on_time), due

    def _on_time(self) -> None:
        # Loops round times: this one's may be a little before the one that it was asked for.
        now = max(self._timer_at, self._loop.time())
        self._timer, self._timer_at = None, math.inf
        self._flush(now)

    # In

    def received(self, publish: bytes) -> None:
        """Take what that node has published, and handle it when it is its turn."""
        if self._closed:
            if self._ending is not None:
                self._ending.received(publish)
                self._say_end()
            return
        if publish[:1] == END:
            self._end(f"it has ended the link: {why_ended(publish)}", is_told=True)
            return
        size = len(publish) + ITEM
        if self._size + size > _MOST:
            self.dropped += 1
            return
        self._publishes.append(publish)
        self._size += size
        self._soon()
        try:
            self._handle()
        except Exception as error:  # noqa: BLE001 - a mistake here, which is not the bus's
            context = {"message": "A frame of another node was not handled", "exception": error}
            self._loop.call_exception_handler(context)

    def _handle(self) -> None:
        """Handle frames until none are left or this iteration has done enough of them."""
        clock, frames, publishes = self._clock, self._frames, self._publishes
        if not publishes and not frames and self._work is None:
            return
        now = clock()
        if self._turn_ends is None:
            self._turn_ends = now + _TURN
        end = self._turn_ends
        try:
            while now < end and not self._closed:
                if self._work is not None:
                    if next(self._work, _DONE) is _DONE:
                        self._work = None
                elif frames:
                    self._work = self._receive(unpack(frames.popleft()))
                elif publishes:
                    publish = publishes.popleft()
                    self._size -= len(publish) + ITEM
                    frames += self._link.received(publish, self._loop.time())
                    continue
                else:
                    break
                now = clock()
        except WireError as error:
            self.end(str(error))
        finally:
            if frames or publishes or self._work is not None:
                self._soon()

    def end(self, problem: str) -> None:
        """End it because that node sends what no node of ours does."""
        self._end(problem, is_told=False)

    def _end(self, problem: str, *, is_told: bool) -> None:
        if self._closed:
            return
        self.close()
        self._ending = Ending(problem, is_told=is_told)
        self._say_end()
        self._broken(problem)

    def _say_end(self) -> None:
        """Tell the other node that the link has ended, again and again until it has done so too."""
        if self._ending is None:
            return
        self._stop_timer()
        if not self._bus.connected:
            return
        for publish in self._ending.flush(self._loop.time()):
            self._bus.publish(self._subject, publish)
        if (due := self._ending.due()) is not None:
            self._timer = self._loop.call_at(due, self._say_end)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Drop all that waits; nobody must wait for room any more."""
        self._ending = None
        self._stop_timer()
        if self._closed:
            return
        self._carried, self._closed = self.traffic, True
        if self._next_turn is not None:
            self._next_turn.cancel()
        self._next_turn = self._work = None
        self._publishes.clear()
        self._frames.clear()
        self._size = 0
        self._published = self._link.published
        self._link = Link()
        self._tell_room()
