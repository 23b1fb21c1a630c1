"""The link between two incarnations of nodes: frames in order, each once, and all of them.

The bus that carries it loses what is under way when a connection breaks, and says nothing. So
frames are gathered into publishes, and publishes are numbered. The receiver takes them in the order
of their numbers and tells how many it has; the sender keeps what has not been acknowledged, and
goes back to the first that is missing. A link ends only with one of the two incarnations.

    send(frame)              takes a frame; it waits for a flush
    received(publish, now)   returns the frames that are now complete
    flush(now)               returns what to publish now
    due()                    returns when to flush; each call of the others may change that

A publish begins with its kind (1 byte) and the number of publishes that its sender has received
(8 bytes, big endian). That is an acknowledgement. It only grows, so it may be lost, doubled and
overtaken.

    ACK                        nothing more
    NAK                        publish again from there on
    PROBE     number           so many were published: tell me how many of them have arrived
    GREETING  number           the same, and ask me: I have connected, and may have missed some
    FRAMES    number, then for each frame its length (4 bytes) and the frame
    PIECE     number, size of the frame (4 bytes), the next part of it

The pieces of a frame follow each other; nothing comes in between.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections import deque
from typing import Final

from msgspec import Struct

from wsrelay.errors import PayloadError, WireError
from wsrelay.values.sizes import ITEM
from wsrelay.wire import MAX_FRAME, MAX_HEAD

__all__ = ["BUSY", "LARGEST", "PUBLISH", "WINDOW", "Link", "LinkStatistics"]

PUBLISH: Final = 256 * 1024
"""Bytes of one publish at most; more would gain nothing, and a NATS server takes 1 MB."""

WINDOW: Final = 2 * 1024 * 1024
"""Bytes that may be under way, with `ITEM` for each publish."""

BUSY: Final = 16 * 1024 * 1024
"""Bytes of waiting frames from which on a node should refuse new ones; see `Link.busy`."""

LARGEST: Final = MAX_FRAME + MAX_HEAD
"""Bytes of the largest frame: what a worker may write, and what its node adds to pass it on."""

_EIGHTH: Final = 8
"""The part of the window after which an acknowledgement does not wait."""

_ACK_DELAY: Final = 0.01
"""Seconds that an acknowledgement waits for a publish to travel with."""

_NAK_EVERY: Final = 0.2
"""Seconds until a second NAK for the same gap: all that is under way shows the gap once more."""

_PROBE_EVERY: Final = 0.3
"""Seconds without an acknowledgement, while some is due, until the receiver is asked."""

_ACK, _NAK, _PROBE, _GREETING, _FRAMES, _PIECE = range(6)

_head = struct.Struct(">BQ")
_numbered = struct.Struct(">BQQ")
_piece = struct.Struct(">BQQI")
_length = struct.Struct(">I")

_MOST_UNDER_WAY: Final = WINDOW // (_numbered.size + ITEM)
"""Publishes that can be under way."""


class LinkStatistics(Struct, frozen=True):
    """Counts in bytes of a link since its beginning, for operators."""

    sent: int
    """Published, each publish once."""
    resent: int
    received: int
    """In order; what came twice or too early is not counted."""
    backlog: int
    """Frames that wait for room in the window, with `ITEM` for each."""
    unacknowledged: int
    """Publishes under way, with `ITEM` for each."""


class Link:
    """The machine of one link; it begins disconnected.

    What it keeps is bounded: publishes under way by `window`; of the frame that arrives in pieces
    only what has arrived, at most `LARGEST`; frames that wait only by their senders, who must look
    at `full` or `busy`.
    """

    def __init__(self) -> None:
        self.window = WINDOW
        """Bytes that may be under way now: at least one publish with its `ITEM`."""
        self.backlog = 0
        """Bytes of frames that wait, with `ITEM` for each."""
        self.taken = 0
        """Frames that were to be sent so far."""
        self._connected = False
        self._greets = False
        """Whether to tell the other node that this one has connected."""

        self._waiting: deque[bytes] = deque()
        self._cut = 0
        """Bytes of the first waiting frame that have been published as pieces."""
        self._under_way: deque[bytes] = deque()
        """The publishes that have not been acknowledged, the oldest first."""
        self._in_flight = 0
        """Bytes of these."""
        self._acknowledged = 0
        self._published = 0
        """How many publishes there were, so the number of the next one."""
        self._again = 0
        """The number from which on to publish again; `_published` if there is nothing to repeat."""
        self._probe_at = math.inf
        self.progress_at = math.inf
        """When publishes were acknowledged last, or had nothing under way before them."""

        self._taken = 0
        """How many publishes have arrived in order."""
        self._untold = 0
        """Bytes of those that have not been acknowledged."""
        self._ack_at = math.inf
        self._nak = False
        """Whether to ask for the rest at once."""
        self._nak_for = -1
        """The gap that the last NAK was for."""
        self._nak_at = -math.inf
        self._partial = bytearray()
        """The frame that arrives in pieces. It grows with them: a size alone takes no memory."""
        self._size = 0
        """The size that frame will have, or 0 if there is none."""

        self._sent = self._resent = self._received = 0

    # The connection

    def connected(self) -> None:
        """Note that what is published from now on is carried.

        What was under way may be lost, in both directions, so the nodes ask each other; at the
        beginning as well, since the other node may have published to nobody.
        """
        self._connected = self._greets = True
        self._nak_for = -1

    def disconnected(self) -> None:
        """Note that nothing is carried: until `connected`, there is nothing to publish."""
        self._connected = self._greets = self._nak = False
        self._ack_at = self._probe_at = math.inf

    # Out

    @property
    def full(self) -> bool:
        """Whether senders in workers should wait: the next publish is full already."""
        return self.backlog >= PUBLISH

    @property
    def busy(self) -> bool:
        """Whether so much waits that senders who cannot wait should be refused."""
        return self.backlog > BUSY

    @property
    def idle(self) -> bool:
        """Whether all that was sent has been acknowledged."""
        return not self._waiting and not self._under_way

    @property
    def published(self) -> int:
        """How many frames have been published in full, so that the other node may have them."""
        return self.taken - len(self._waiting)

    def send(self, frame: bytes) -> None:
        """Take a frame, which goes out with the next flush that has room for it.

        Raises `PayloadError` for more than `LARGEST` bytes.
        """
        size = len(frame)
        if size > LARGEST:
            raise PayloadError(f"{size} bytes are more than nodes send at once, {LARGEST}")
        self._waiting.append(frame)
        self.taken += 1
        self.backlog += size + ITEM

    def flush(self, now: float) -> list[bytes]:
        """Return what is to be published now, in this order."""
        if not self._connected:
            return []
        publishes: list[bytes] = []
        if self._greets:
            publishes.append(_numbered.pack(_GREETING, self._taken, self._published))
            self._greets = False
            self._probe_at = now + _PROBE_EVERY if self._under_way else math.inf
            self._told()
        if self._again < self._published:
            first = self._again - self._acknowledged
            again = list(itertools.islice(self._under_way, first, None))
            publishes += again
            self._resent += sum(map(len, again))
            self._again = self._published
            self._probe_at = now + _PROBE_EVERY
        if self._nak:
            publishes.append(_head.pack(_NAK, self._taken))
            self._nak = False
            self._nak_for, self._nak_at = self._taken, now
            self._told()
        if self._waiting and self._has_room():
            if not self._under_way:
                self._probe_at = now + _PROBE_EVERY
                self.progress_at = now
            while self._waiting and self._has_room():
                publishes.append(self._next_publish())
            self._told()
        if now >= self._probe_at:
            publishes.append(_numbered.pack(_PROBE, self._taken, self._published))
            self._probe_at = now + _PROBE_EVERY
            self._told()
        if now >= self._ack_at:
            publishes.append(_head.pack(_ACK, self._taken))
            self._told()
        return publishes

    def due(self) -> float | None:
        """Return when `flush` has something to publish: a time that may be over, or None."""
        if not self._connected:
            return None
        at_once = self._greets or self._nak or self._again < self._published
        if at_once or (self._waiting and self._has_room()):
            return -math.inf
        due = min(self._ack_at, self._probe_at)
        return due if due < math.inf else None

    def _has_room(self) -> bool:
        # For a whole publish: what is cut to the room that there is would become ever smaller.
        return self._in_flight + PUBLISH + ITEM <= self.window

    def _told(self) -> None:
        """Note that what is published now acknowledges all that was taken."""
        self._ack_at = math.inf
        self._untold = 0

    def _next_publish(self) -> bytes:
        """Make the next publish of what waits, and count it as published."""
        waiting = self._waiting
        room = PUBLISH - _numbered.size
        size = len(waiting[0])
        if size + _length.size > room:
            head = _piece.pack(_PIECE, self._taken, self._published, size)
            part = memoryview(waiting[0])[self._cut : self._cut + PUBLISH - _piece.size]
            publish = b"".join((head, part))
            self._cut += len(part)
            self.backlog -= len(part)
            if self._cut == size:
                waiting.popleft()
                self._cut = 0
                self.backlog -= ITEM
        else:
            parts = [_numbered.pack(_FRAMES, self._taken, self._published)]
            while size + _length.size <= room:
                parts += (_length.pack(size), waiting.popleft())
                room -= size + _length.size
                self.backlog -= size + ITEM
                if not waiting:
                    break
                size = len(waiting[0])
            publish = b"".join(parts)
        self._under_way.append(publish)
        self._in_flight += len(publish) + ITEM
        self._sent += len(publish)
        self._published += 1
        self._again = self._published
        return publish

    # In

    def received(self, publish: bytes, now: float) -> list[bytes | memoryview]:
        """Take a publish of the other node and return the frames that it completes, in order.

        A frame that is most of what arrived is a view of it. Raises `WireError` for what no node of
        ours publishes; then nothing has changed, but the link cannot go on.
        """
        size = len(publish)
        if not _head.size <= size <= PUBLISH:
            raise WireError(f"a publish of {size} bytes; they have {_head.size} to {PUBLISH}")
        kind, told = _head.unpack_from(publish)
        if told > self._published:
            raise WireError(f"{told} publishes are acknowledged, {self._published} were published")
        frames: list[bytes | memoryview] = []
        if kind in (_ACK, _NAK):
            if size != _head.size:
                raise WireError(f"an acknowledgement of {size} bytes has {_head.size}")
        else:
            number = self._number(kind, publish)
            ahead = number - self._taken
            if kind in (_PROBE, _GREETING):
                self._probed(ahead, now)
            elif ahead == 0:
                frames = self._opened(kind, publish)
                self._count(size, now)
            elif ahead > 0:
                self._missing(now)
            else:  # it comes a second time: the acknowledgement may be lost
                self._ack_at = min(self._ack_at, now + _ACK_DELAY)
        self._acknowledge(told, now)
        if kind == _NAK and told >= self._acknowledged:
            self._again = told
        elif kind == _GREETING and self._under_way:
            self._probe_at = now
        return frames

    def _number(self, kind: int, publish: bytes) -> int:
        """Return the number in a publish, if there can be such a one."""
        size = len(publish)
        is_empty = kind in (_PROBE, _GREETING)
        if kind > _PIECE or size < _numbered.size or (is_empty and size != _numbered.size):
            raise WireError(f"{size} bytes are not a publish: they begin with {publish[:1]!r}")
        number: int = _numbered.unpack_from(publish)[2]
        if number > self._taken + _MOST_UNDER_WAY:
            raise WireError(f"publish {number} follows {self._taken}")
        return number

    def _probed(self, ahead: int, now: float) -> None:
        if ahead > 0:
            self._missing(now)
        else:
            self._ack_at = now

    def _missing(self, now: float) -> None:
        """Ask for what has been left out, unless that was done a moment ago."""
        if self._nak_for != self._taken or now >= self._nak_at + _NAK_EVERY:
            self._nak = True

    def _count(self, size: int, now: float) -> None:
        """Count a publish as taken; see to it that the other node is told."""
        self._taken += 1
        self._received += size
        self._untold += size + ITEM
        soon = now if self._untold >= self.window // _EIGHTH else now + _ACK_DELAY
        self._ack_at = min(self._ack_at, soon)

    def _acknowledge(self, told: int, now: float) -> None:
        """Forget what has arrived at the other node."""
        if told <= self._acknowledged:
            return
        while self._acknowledged < told:
            self._in_flight -= len(self._under_way.popleft()) + ITEM
            self._acknowledged += 1
        self._again = max(self._again, told)
        self.progress_at = now
        self._probe_at = now + _PROBE_EVERY if self._under_way else math.inf

    def _opened(self, kind: int, publish: bytes) -> list[bytes | memoryview]:
        """Return the frames in a publish, in which there may be none of a piece."""
        if kind == _PIECE:
            return self._pieced(publish)
        if self._size:
            raise WireError(f"{len(self._partial)} of {self._size} bytes of a frame, then another")
        at, end = _numbered.size, len(publish)
        view = memoryview(publish)
        frames: list[bytes | memoryview] = []
        while at < end:
            if end - at < _length.size:
                raise WireError(f"{end - at} bytes are left in a publish behind its frames")
            (size,) = _length.unpack_from(publish, at)
            at += _length.size
            if size > end - at:
                raise WireError(f"a frame of {size} bytes in {end - at} bytes of a publish")
            # A view keeps the whole publish in memory.
            frames.append(view[at : at + size] if 2 * size > end else publish[at : at + size])
            at += size
        if not frames:
            raise WireError("a publish without a frame")
        return frames

    def _pieced(self, publish: bytes) -> list[bytes | memoryview]:
        part = memoryview(publish)[_piece.size :]
        if not part:
            raise WireError("a piece of no frame")
        size: int = _piece.unpack_from(publish)[3]
        if self._size and size != self._size:
            raise WireError(f"a piece of a frame of {size} bytes follows one of {self._size}")
        if size > LARGEST:
            raise WireError(f"a frame of {size} bytes; at most {LARGEST} are allowed")
        if len(self._partial) + len(part) > size:
            raise WireError(f"{len(self._partial)} and {len(part)} bytes are no frame of {size}")
        self._size = size
        self._partial += part
        if len(self._partial) < size:
            return []
        frame, self._partial, self._size = self._partial, bytearray(), 0
        return [memoryview(frame)]

    def statistics(self) -> LinkStatistics:
        """Return the counts of now."""
        return LinkStatistics(
            self._sent, self._resent, self._received, self.backlog, self._in_flight
        )
