"""What has arrived at a worker and waits to be taken."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from wsrelay import current, payload, wire
from wsrelay.errors import ChannelClosed
from wsrelay.message import JOIN, Event, Message
from wsrelay.pid import PID

from .pipe import ShutLock, WorkerPipe

__all__ = ["Mailbox", "Queue"]

logger = logging.getLogger(__name__)

_ACKNOWLEDGE: Final = wire.WINDOW // 4
"""Bytes taken before the node is told; the window's rest keeps it sending meanwhile."""


_NOBODY: Final = 0
"""The number of a request whose answer nobody waits for."""


class Queue:
    """Items in order of arrival, each with the bytes that its taking makes room for."""

    __slots__ = ("closed", "items")

    def __init__(self) -> None:
        self.items: deque[tuple[Any, int]] = deque()
        self.closed = False


class Mailbox:
    """Takes frames off the pipe and sorts them into queues.

    Whoever waits reads the pipe for all: one thread at a time reads, the others wait for what it
    brings. Once a coroutine has waited, the event loop reads instead and nobody else does. Two that
    read would tear frames apart.
    """

    def __init__(self, pipe: WorkerPipe) -> None:
        self.inbox = Queue()
        self.events = Queue()
        self.received = 0
        """Data frames received; with `unread` it tells the node what was never seen here."""
        self.unread: set[str] = set()
        self._replies: dict[int, Queue] = {}
        self._listeners: dict[str, Queue] = {}
        self._metadata: dict[str, tuple[PID, Any]] = {}
        self._pipe = pipe
        self._lock: Any = threading.Lock()
        self._changed: Any = threading.Condition(self._lock)
        self._sleepers = 0
        """Threads that wait for what another one reads."""
        self._sorters: dict[type[Any], Callable[[Any, int], None]] = {
            wire.Relay: self._relayed,
            wire.Deliver: self._posted,
            wire.Attach: self._attached,
            wire.Detach: self._detached,
            wire.CloseInbox: self._inbox_closed,
            wire.Signal: self._signal,
            wire.Reply: self._replied,
            wire.Finished: self._replied,
            wire.Known: self._learn,
        }
        self.known = wire.Known([], {})
        """What can be spawned."""
        self._in_read = False
        """A thread reads the pipe, without the lock."""
        self._reserved = False
        """No thread is to begin to: the event loop reads, or the handler has returned."""
        self._taken = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    def shut(self) -> None:
        """Give nothing any more, in a child: what is here is its parent's mail."""
        self._lock = self._changed = ShutLock()
        vars(self)["_attach"] = current.worker  # coroutines are told, too

    def take(self, *queues: Queue, timeout: float | None = None) -> tuple[Queue, Any]:
        """Wait for the next item of the first queue that has one, up to `timeout` seconds.

        Raises `TimeoutError`, or `ChannelClosed` once all are closed and empty.
        """
        with self._lock:
            queue = _ready(queues) or self._wait(queues, timeout)
            item, taken = self._pop(queue)
        if taken:
            self._pipe.write(wire.Taken(taken))
        return queue, item

    def _wait(self, queues: tuple[Queue, ...], timeout: float | None) -> Queue:
        """Return the first queue that has an item, once one has; the lock is held."""
        deadline = None if timeout is None else time.monotonic() + timeout
        remaining = timeout
        while True:
            if (self._in_read or self._reserved) and self._somebody_reads():
                self._sleepers += 1
                self._changed.wait(remaining)
                self._sleepers -= 1
            else:
                self._read(remaining)
            if (queue := _ready(queues)) is not None:
                return queue
            if deadline is not None:
                if remaining == 0:
                    raise TimeoutError
                remaining = max(deadline - time.monotonic(), 0)

    async def take_async(
        self,
        *queues: Queue,
        timeout: float | None = None,  # noqa: ASYNC109 - as in `take`
    ) -> tuple[Queue, Any]:
        """Do what `take` does without holding up the event loop."""
        self._attach()
        if timeout is not None and timeout <= 0 and _ready(queues) is None:
            self._readable()
        async with asyncio.timeout(timeout):
            while (queue := _ready(queues)) is None:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                await waiter
        with self._lock:
            item, taken = self._pop(queue)
        if taken:
            self._pipe.write(wire.Taken(taken))
        return queue, item

    def listen(self, topic: str) -> Queue:
        """Return the queue that messages of this topic come to from now on."""
        with self._lock:
            queue = self._listeners.get(topic)
            if queue is None:
                queue = self._listeners[topic] = Queue()
                queue.closed = self.inbox.closed
            return queue

    def unlisten(self, queue: Queue) -> None:
        """Close a queue of `listen`; later messages of its topic come to the inbox again.

        Raises `ValueError` for any other queue.
        """
        with self._lock:
            topic = next((t for t, other in self._listeners.items() if other is queue), None)
            if topic is None and (queue is self.inbox or queue is self.events):
                raise ValueError("only a channel of listen() can be given to unlisten()")
            if topic is not None:
                del self._listeners[topic]
            queue.closed = True
            self._changed.notify_all()
            read_elsewhere = self._in_read
        self._wake_loop()
        if read_elsewhere:  # by a thread that waits for this very queue, perhaps
            self._call_back()

    def expect(self, ref: int) -> Queue:
        """Return the queue that the reply to the call `ref` will come to."""
        queue = self._replies[ref] = Queue()
        return queue

    def forget(self, ref: int) -> None:
        """Expect no reply any more."""
        self._replies.pop(ref, None)

    def read_the_rest(self) -> None:
        """Take in what has arrived, so that `received` and `unread` are exact at the end."""
        with self._lock:
            self._reserve()
            try:
                while frames := self._pipe.read(0):
                    self.sort(frames)
            except (EOFError, OSError):
                self._close()

    def sort(self, frames: Iterable[tuple[wire.ToWorker, int]]) -> None:
        """Put frames with their sizes into the queues; other threads must be kept out."""
        sorters = self._sorters
        for frame, size in frames:
            sorters[type(frame)](frame, size)

    def _pop(self, queue: Queue) -> tuple[Any, int]:
        """Take an item; with it, the bytes to acknowledge now or 0."""
        item, size = queue.items.popleft()
        taken = 0
        if size:
            if self.unread and item.topic == JOIN:
                self.unread.discard(item.sender)
            self._taken += size
            if self._taken >= _ACKNOWLEDGE:
                taken, self._taken = self._taken, 0
        return item, taken

    def _somebody_reads(self) -> bool:
        """Whether another thread, or an event loop in another thread, reads the pipe for us."""
        if self._loop is not None and self._loop.is_closed():
            self._loop = None
            self._reserved = False
        mine = self._loop is not None and self._loop_thread == threading.get_ident()
        return self._in_read or (self._reserved and not mine)

    def _reserve(self) -> None:
        """Let no other thread read any more; the lock is held."""
        self._reserved = True
        if self._in_read:
            self._call_back()
            self._sleepers += 1
            self._changed.wait_for(lambda: not self._in_read)
            self._sleepers -= 1

    def _call_back(self) -> None:
        """Have the thread that reads look at its queue again.

        Nothing but bytes wakes it, so the node is asked a question that nobody waits for.
        """
        self._pipe.write(wire.Members(_NOBODY, ""))

    def _read(self, timeout: float | None) -> None:
        """Read once for everyone; called and left with the lock held."""
        self._in_read = True
        self._lock.release()
        try:
            frames = self._pipe.read(timeout)
        except (EOFError, OSError):
            frames = None
        finally:
            self._lock.acquire()
            self._in_read = False
        if frames is None:
            self._close()
        else:
            self.sort(frames)
        if self._sleepers or self._waiters:
            self._tell_all()

    def _attach(self) -> None:
        """Let the running event loop do the reading from now on."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("wsrelay.aio serves one event loop of a process, this is a second")
        with self._lock:
            self._reserve()
            self._loop, self._loop_thread = loop, threading.get_ident()
        loop.add_reader(self._pipe.ends, self._readable)

    def _readable(self) -> None:
        with self._lock:
            try:
                self.sort(self._pipe.read(0))
            except (EOFError, OSError):
                if self._loop is not None:
                    self._loop.remove_reader(self._pipe.ends)
                self._close()
            self._tell_all()

    def _tell_all(self) -> None:
        """Wake all that wait; the lock is held."""
        if self._sleepers:
            self._changed.notify_all()
        if self._waiters:
            self._wake()

    def _wake_loop(self) -> None:
        """Wake the coroutines that wait; from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        """Wake the coroutines that wait; called in the event loop's thread, if there is one."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # What arrives

    def _relayed(self, frame: wire.Relay, size: int) -> None:
        self.received += 1
        content = frame.payload
        client, content["metadata"] = self._metadata[frame.client]
        content["client_pid"] = client
        if frame.topic == JOIN:
            self.unread.add(client)
        queue = self._listeners.get(frame.topic, self.inbox)
        queue.items.append((Message(frame.topic, content, client), size))

    def _posted(self, frame: wire.Deliver, size: int) -> None:
        self.received += 1
        sender = PID.trusted(frame.sender)
        try:
            content = payload.decode(frame.payload)
        except (ValueError, RecursionError) as error:
            self._taken += size
            logger.error("a message of %s is no data: %s", sender, error)  # noqa: TRY400
        else:
            queue = self._listeners.get(frame.topic, self.inbox)
            queue.items.append((Message(frame.topic, content, sender), size))

    def _attached(self, frame: wire.Attach, size: int) -> None:
        self.received += 1
        client = PID.trusted(frame.client)
        self._metadata[client] = client, payload.decode(frame.metadata)
        self._taken += size

    def _detached(self, frame: wire.Detach, size: int) -> None:
        self.received += 1
        self._metadata.pop(frame.client, None)
        self._taken += size

    def _inbox_closed(self, _: wire.CloseInbox, size: int) -> None:
        self.received += 1
        for queue in (self.inbox, *self._listeners.values()):
            queue.closed = True
        self._taken += size

    def _signal(self, frame: wire.Signal, _: int) -> None:
        event = Event(frame.kind, PID.trusted(frame.sender), frame.result, frame.reason)
        self.events.items.append((event, 0))

    def _replied(self, frame: wire.Reply | wire.Finished, _: int) -> None:
        if (queue := self._replies.pop(frame.ref, None)) is not None:
            queue.items.append((frame, 0))

    def _learn(self, frame: wire.Known, _: int) -> None:
        self.known = frame

    def _close(self) -> None:
        for queue in (
            self.inbox,
            self.events,
            *self._listeners.values(),
            *self._replies.values(),
        ):
            queue.closed = True


def _ready(queues: Iterable[Queue]) -> Queue | None:
    """Return the first queue that has an item; raises `ChannelClosed` if none ever will."""
    is_open = False
    for queue in queues:
        if queue.items:
            return queue
        is_open = is_open or not queue.closed
    if not is_open:
        raise ChannelClosed
    return None
