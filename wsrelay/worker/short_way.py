"""The short ways of the most common messages: from a client to this process, and back to a client.

A worker that has slept finds its caches cold, so that each further function, lock and object costs
it three times what it costs in a loop. So each of these ways is one piece, and there are two of
each that do the same: in C (`_short_way.c`), and in Python for where that is not built. Everything
that is not the common case is left to the longer ways in `mailbox` and `pipe`, with nothing lost.
"""

from __future__ import annotations

import os
import select
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from wsrelay import wire
from wsrelay.values.client import Client
from wsrelay.values.message import SEND, Relayed
from wsrelay.values.pid import PID
from wsrelay.wire import payload
from wsrelay.wire.tally import TAKEN, TOOK, Tally, clock, private_tally

__all__ = ["CHUNK", "WHOLE", "PyShortWay", "ShortWay"]

CHUNK: Final = 64 * 1024
"""Bytes of one read; more than 128 KiB would be mapped and unmapped by malloc each time."""

WHOLE: Final = select.PIPE_BUF
"""Bytes that a pipe takes as a whole or not at all (pipe(7)): no frame up to this size is cut."""

_PREFIX: Final = 4
_SEND_TAG: Final = wire.SendFrame.__struct_config__.tag

_length = struct.Struct(">I").unpack_from
_encode = msgspec.msgpack.Encoder().encode


class PyShortWay:
    """What the short ways and the longer ones share: the state of a worker's pipe.

    It is an iterator of the messages that come by the short way. It ends where the longer way has
    to go on, and can be iterated over again after that.
    """

    lock: Any
    """Held while a frame is written."""
    line: deque[Any]
    """Frames that wait for room."""
    reads: Iterator[bytes]
    """Reads the pipe once at each step."""
    arrived: deque[Any]
    """Frames that were read and are not yet sorted."""
    items: deque[Any]
    """The inbox."""
    sleepers: set[Any]
    """Threads that wait for what another one reads."""
    waiters: set[Any]
    """Coroutines that wait."""
    listeners: dict[str, Any]
    """The channels of topics whose messages do not go to the inbox."""
    clients: dict[str, tuple[Client[Any], Any]]
    """Each client and its metadata."""
    wake: Callable[[], None]
    """Lets sleepers and waiters look again."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading = reading
        self.writing = writing
        self.data: bytes | memoryview = b""
        """What was read and not yet taken, from `at` on; empty if all was."""
        self.at = 0
        self.has_begun = False
        """Whether the beginning of a frame is held elsewhere."""
        self.is_simple = False
        """Whether messages may take the short way: the inbox is open, and no event loop reads."""
        self.in_read = False
        """Whether a thread is reading the pipe; it owns `data` until it has finished."""
        self.received = 0
        """Data frames received; with `Mailbox.unread`, it tells the node what was never seen."""
        self.taken = 0
        """Bytes of data taken by the handler, in all."""
        self.due = 0
        """At how many of them the node is told next."""
        self.noted = 0
        """Messages taken by the handler: what is in the tally, unless others write there."""
        self.tally = private_tally()
        """Where it is noted, for the node to see, how many messages were taken, and when."""
        self._clock = clock()

    def note_in(self, tally: Tally) -> None:
        """Note what is taken there."""
        self.tally = tally

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Relayed:  # noqa: C901 - one piece, for the reason above
        """Return the client's message that is next in the pipe; wait for one if it is empty.

        As signal handlers do (see `pipe`), other threads run after a call, where a function begins
        and where a loop jumps back, and nowhere else. So `in_read` is set in lines without a call
        after it was seen to be free, and a message is taken in such lines.
        """
        if (
            self.is_simple
            and not self.in_read
            and not self.arrived
            and not self.items
            and not self.has_begun
        ):
            data = self.data
            if not data:
                self.in_read = True
                try:
                    for data in self.reads:
                        self.data = data
                        self.in_read = False
                        break
                except BlockingIOError:  # an event loop has begun to read meanwhile
                    self.in_read = False
                except BaseException:
                    self.in_read = False
                    self._wake_surely()
                    raise
                if self.sleepers or self.waiters:
                    self._wake_surely()
            start, end = self.at, len(data)
            begin = start + _PREFIX
            if begin <= end and (stop := begin + _length(data, start)[0]) <= end:
                try:
                    frame = wire.decode_to_worker(data[begin:stop])
                except (ValueError, RecursionError):
                    raise StopIteration from None  # the longer way says what is wrong with it
                if type(frame) is wire.RelayFrame and frame.client in self.clients:
                    content, topic = frame.payload, frame.topic
                    client, content["metadata"] = self.clients[frame.client]
                    content["client_pid"] = client
                    message = Relayed(topic, content, client)
                    # There must be no call from here to the end of this block.
                    if (
                        self.data is data
                        and self.at == start
                        and self.is_simple
                        and not self.in_read
                        and not self.items
                        and topic not in self.listeners
                        and self.taken + stop - start < self.due
                    ):
                        self.data, self.at = (b"", 0) if stop == end else (data, stop)
                        self.received += 1
                        self.taken += stop - start
                        self.noted += 1
                        self.tally[TAKEN] = self.noted
                        for self.tally[TOOK] in self._clock:  # noqa: B020 - without a call
                            return message
        raise StopIteration

    def _wake_surely(self) -> None:
        """Wake who waits, again if a signal handler raises in it: nobody else would."""
        try:
            self.wake()
        except BaseException:
            self.wake()
            raise

    def send_short(self, to: Any, topic: Any, content: Any) -> bool:
        """Send a `ws.send` to one client if it takes no waiting and no more than `WHOLE` bytes.

        Otherwise, also if there is anything wrong with it, nothing is done and it returns False.
        """
        if isinstance(to, PID) and topic == SEND and payload.is_plain(content):
            try:
                body = _encode((_SEND_TAG, str.__str__(to), SEND, _encode(content)))
                if len(body) + _PREFIX <= WHOLE:
                    with self.lock:
                        if not self.line:
                            os.write(self.writing, len(body).to_bytes(_PREFIX, "big") + body)
                            return True
            except (TypeError, ValueError, BlockingIOError):
                pass  # the longer way says what is wrong with it, or waits for room
        return False


if TYPE_CHECKING or os.environ.get("WSRELAY_NO_EXTENSIONS"):
    ShortWay = PyShortWay
else:
    try:
        from ._short_way import ShortWay
    except ImportError:
        ShortWay = PyShortWay
