"""What has arrived at a worker and is waiting to be taken."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic, TypeVar

from wsrelay import wire
from wsrelay.errors import ChannelClosed
from wsrelay.values import current
from wsrelay.values.message import JOIN, Event, Message, Relayed
from wsrelay.values.pid import PID
from wsrelay.wire import payload

from .pipe import ShutLock, WorkerPipe

__all__ = ["Mailbox", "Queue"]

logger = logging.getLogger(__name__)

_ACKNOWLEDGE: Final = wire.WINDOW // 4
"""Bytes taken before the node is told; the rest of the window keeps it sending meanwhile."""


_UNANSWERED: Final = 0
"""The number of a request whose answer nothing waits for."""

_COUNTED: Final = 0
"""The size of an item that goes back to its queue: it was already counted as taken."""

_LOOK_AGAIN: Final = 1.0
"""Seconds after which a thread notices that the event loop that it waits for was closed."""


T = TypeVar("T")


class Queue(Generic[T]):
    """Items in order of arrival, each with the number of bytes that taking it frees."""

    __slots__ = ("closed", "items")

    def __init__(self) -> None:
        self.items: deque[tuple[T, int]] = deque()
        self.closed = False


class Mailbox:
    """Reads frames from the pipe and sorts them into queues.

    A thread that waits reads the pipe for all: one thread at a time reads, the others wait for what
    it brings. Once a coroutine has waited, only the event loop reads. Two readers at once would
    tear frames apart.

    A signal handler may raise anywhere in here (see `pipe`). Nothing is lost: what was read is
    sorted by the next reader, and what was taken goes back to its queue.
    """

    def __init__(self, pipe: WorkerPipe) -> None:
        self.inbox: Queue[Message] = Queue()
        self.events: Queue[Event] = Queue()
        self.received = 0
        """Data frames received; with `unread`, it tells the node what was never seen here."""
        self._replies: dict[int, Queue[Any]] = {}
        self._listeners: dict[str, Queue[Message]] = {}
        self._former: list[Queue[Message]] = []
        """Queues that were not empty when `unlisten` closed them."""
        self._metadata: dict[str, tuple[PID, Any]] = {}
        self._pipe = pipe
        self._lock: Any = threading.Lock()
        self._sorters: dict[type[Any], Callable[[Any, int], None]] = {
            wire.RelayFrame: self._relayed,
            wire.DeliverFrame: self._posted,
            wire.AttachFrame: self._attached,
            wire.DetachFrame: self._detached,
            wire.CloseInboxFrame: self._inbox_closed,
            wire.SignalFrame: self._signal,
            wire.ReplyFrame: self._replied,
            wire.FinishedFrame: self._replied,
            wire.CatalogFrame: self._learn,
        }
        self.known = wire.CatalogFrame([], {})
        """What can be spawned."""
        self._arrived: deque[tuple[wire.ToWorker, int]] = deque()
        """Frames that were read and are not yet sorted."""
        self._in_read = False
        """Whether a thread is reading the pipe, without the lock."""
        self._reserved = False
        """Whether no thread may start to: the event loop reads, or the handler has returned."""
        self._over = False
        self._taken = 0
        """Bytes of data taken from the queues, in all."""
        self._acknowledged = 0
        """How many of them the node knows of."""
        self._sleepers: set[SimpleQueue[None]] = set()
        """Threads that wait for what another reader brings."""
        self._waiters: set[asyncio.Future[None]] = set()
        """Coroutines that wait."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    def shut(self) -> None:
        """Give out nothing more, in a child: what is here belongs to its parent."""
        self._lock = ShutLock()
        vars(self)["_attach"] = current.worker  # raises in coroutines, too

    def take(  # noqa: C901, PLR0912 - flat, for the exceptions of signal handlers and for speed
        self, *queues: Queue[Any], timeout: float | None = None
    ) -> tuple[Queue[Any], Any]:
        """Wait for the next item of the first queue that has one, up to `timeout` seconds.

        Raises `TimeoutError`, or `ChannelClosed` once all are closed and empty.
        """
        taken, reading, sleeper, deadline = None, False, None, 0.0
        if timeout is not None:
            timeout = max(timeout, 0)
            deadline = time.monotonic() + timeout
        try:
            while True:
                with self._lock:
                    if reading:
                        self._sort()
                        self._in_read = reading = False
                        if self._sleepers or self._waiters:
                            self._wake_all()
                    if (taken := self._pop(queues)) is not None:
                        break
                    if timeout is not None and timeout < 0:
                        raise TimeoutError  # noqa: TRY301
                    if (self._in_read or self._reserved) and self._other_reads():
                        sleeper = SimpleQueue[None]()
                        self._sleepers.add(sleeper)
                    else:
                        self._in_read = reading = True
                if reading:
                    try:
                        if not self._arrived:  # else a signal handler raised before the sorting
                            self._arrived += self._pipe.read(timeout)
                    except EOFError:
                        with self._lock:
                            self._close()
                elif sleeper is not None:
                    self._sleep(sleeper, timeout)
                if timeout is not None:
                    timeout = deadline - time.monotonic()
            if self._taken - self._acknowledged >= _ACKNOWLEDGE:
                self._acknowledge()
        except BaseException:
            if reading:
                self._in_read = False
            if taken is not None:
                taken[0].items.appendleft((taken[1], _COUNTED))
            if sleeper is not None:
                self._sleepers.discard(sleeper)
            if reading or taken is not None:
                with self._lock:
                    self._wake_all()
            raise
        return taken

    async def take_async(
        self,
        *queues: Queue[Any],
        timeout: float | None = None,  # noqa: ASYNC109 - as in `take`
    ) -> tuple[Queue[Any], Any]:
        """Do what `take` does without holding up the event loop."""
        self._attach()
        taken = None
        try:
            with self._lock:
                taken = self._pop(queues)
            if taken is None:
                if timeout is not None and timeout <= 0:
                    self._readable()
                if timeout is None:
                    taken = await self._next(queues)
                else:
                    async with asyncio.timeout(timeout):
                        taken = await self._next(queues)
            if self._taken - self._acknowledged >= _ACKNOWLEDGE:
                self._acknowledge()
        except BaseException:
            if taken is not None:
                taken[0].items.appendleft((taken[1], _COUNTED))
                with self._lock:
                    self._wake_all()
            raise
        return taken

    async def _next(self, queues: tuple[Queue[Any], ...]) -> tuple[Queue[Any], Any]:
        """Wait for the next item and take it; nothing is awaited once it is taken."""
        taken = None
        try:
            while True:
                with self._lock:
                    if (taken := self._pop(queues)) is not None:
                        break
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.add(waiter)
                try:
                    await waiter
                finally:
                    self._waiters.discard(waiter)
        except BaseException:
            if taken is not None:
                taken[0].items.appendleft((taken[1], _COUNTED))
                with self._lock:
                    self._wake_all()
            raise
        return taken

    def listen(self, topic: str) -> Queue[Message]:
        """Return the queue that receives messages of this topic from now on."""
        with self._lock:
            queue = self._listeners.get(topic)
            if queue is None:
                queue = self._listeners[topic] = Queue()
                queue.closed = self.inbox.closed
            return queue

    def unlisten(self, queue: Queue[Any]) -> None:
        """Close a queue of `listen`; later messages of its topic go to the inbox again.

        Raises `ValueError` for any other queue.
        """
        with self._lock:
            topic = next((t for t, other in self._listeners.items() if other is queue), None)
            if topic is None and (queue is self.inbox or queue is self.events):
                raise ValueError("unlisten() takes only a channel that listen() returned")
            if topic is not None:
                del self._listeners[topic]
                self._former = [other for other in (*self._former, queue) if other.items]
            queue.closed = True
            self._wake_all()
            read_elsewhere = self._in_read
        if read_elsewhere:  # perhaps by a thread that waits for this very queue
            self._wake_reader()

    def expect(self, ref: int) -> Queue[Any]:
        """Return the queue that will receive the reply to the request `ref`."""
        queue = self._replies[ref] = Queue()
        return queue

    def forget(self, ref: int) -> None:
        """Stop expecting that reply."""
        self._replies.pop(ref, None)

    @property
    def unread(self) -> set[str]:
        """The clients whose `ws.join` was received and never taken."""
        queues = (self.inbox, *self._listeners.values(), *self._former)
        return {item.sender for queue in queues for item, _ in queue.items if item.topic == JOIN}

    def read_the_rest(self) -> None:
        """Read what has arrived, so that `received` and `unread` are exact at the end."""
        sleeper: SimpleQueue[None] = SimpleQueue()
        with self._lock:
            self._reserved = self._over = True
            self._sleepers.add(sleeper)
            read_elsewhere = self._in_read
        if read_elsewhere:
            self._wake_reader()
            while self._in_read:
                sleeper.get()
        with self._lock:
            try:
                self._sort()
                while frames := self._pipe.read(0):
                    self.sort(frames)
            except EOFError:
                self._close()

    def sort(self, frames: Iterable[tuple[wire.ToWorker, int]]) -> None:
        """Put frames with their sizes into the queues; other threads must be kept out."""
        self._arrived += frames
        self._sort()

    def _sort(self) -> None:
        """Put what has arrived into the queues; the lock is held.

        A sorter removes its frame once all that is left to do cannot be interrupted: lines without
        a call, and at most one call, in the last of them. What it does before that may be done
        twice.
        """
        arrived, sorters = self._arrived, self._sorters
        while arrived:
            frame, size = arrived[0]
            sorters[type(frame)](frame, size)

    def _pop(self, queues: tuple[Queue[Any], ...]) -> tuple[Queue[Any], Any] | None:
        """Take an item of the first queue that has one; the lock is held.

        Raises `ChannelClosed` if none ever will.
        """
        is_open = False
        for queue in queues:
            if queue.items:
                item, size = queue.items[0]
                del queue.items[0]
                self._taken += size
                return queue, item
            is_open = is_open or not queue.closed
        if not is_open:
            raise ChannelClosed
        return None

    def _acknowledge(self) -> None:
        """Tell the node what was taken, so that it goes on sending."""
        taken = self._taken
        self._pipe.write(wire.AckFrame(taken))
        self._acknowledged = taken

    def _other_reads(self) -> bool:
        """Whether another thread, or an event loop in another thread, reads the pipe for us."""
        if self._loop is not None and self._loop.is_closed():
            self._loop = None
            self._reserved = self._over
        mine = self._loop is not None and self._loop_thread == threading.get_ident()
        return self._in_read or (self._reserved and not mine)

    def _sleep(self, sleeper: SimpleQueue[None], timeout: float | None) -> None:
        """Wait for what another reader brings."""
        if self._loop is not None:
            timeout = _LOOK_AGAIN if timeout is None else min(timeout, _LOOK_AGAIN)
        try:
            sleeper.get(timeout=timeout)
        except Empty:
            pass
        self._sleepers.discard(sleeper)

    def _wake_reader(self) -> None:
        """Have the thread that reads look at its queue again.

        Only bytes wake it, so the node is sent a request whose answer nothing waits for.
        """
        self._pipe.write(wire.MembersFrame(_UNANSWERED, ""))

    def _attach(self) -> None:
        """Let the running event loop do the reading from now on.

        A thread that is reading at this moment finishes, and what it reads is for all.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("wsrelay.aio serves one event loop per process; this is a second")
        with self._lock:
            self._loop, self._loop_thread = loop, threading.get_ident()
            self._reserved = True
            self._waiters.clear()
        self._pipe.attach(loop)
        loop.add_reader(self._pipe.ends, self._readable)

    def _readable(self) -> None:
        """Read for everyone in the event loop, unless a thread still does."""
        try:
            with self._lock:
                if self._in_read or self._over:
                    return
                try:
                    if not self._arrived:
                        self._arrived += self._pipe.read(0)
                    self._sort()
                except EOFError:
                    if self._loop is not None:
                        self._loop.remove_reader(self._pipe.ends)
                    self._close()
                self._wake_all()
        except BaseException:
            if self._loop is not None and self._arrived:
                self._loop.call_soon(self._readable)
            raise

    def _wake_all(self) -> None:
        """Wake all that wait, to look at their queues again; the lock is held."""
        for sleeper in tuple(self._sleepers):
            sleeper.put(None)
        if self._waiters and self._loop is not None:
            if self._loop_thread == threading.get_ident():
                self._wake()
            elif not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        """Wake the coroutines that wait; called in the event loop's thread."""
        for waiter in tuple(self._waiters):
            if not waiter.done():
                waiter.set_result(None)

    # Sorters

    def _relayed(self, frame: wire.RelayFrame, size: int) -> None:
        content = frame.payload
        client, content["metadata"] = self._metadata[frame.client]
        content["client_pid"] = client
        queue = self._listeners.get(frame.topic, self.inbox)
        entry = Relayed(frame.topic, content, client), size
        del self._arrived[0]
        self.received += 1
        queue.items.append(entry)

    def _posted(self, frame: wire.DeliverFrame, size: int) -> None:
        sender = PID.trusted(frame.sender)
        try:
            content = payload.decode(frame.payload)
        except (ValueError, RecursionError) as error:
            logger.error("a message from %s is not data: %s", sender, error)  # noqa: TRY400
            self._seen(size)
            return
        queue = self._listeners.get(frame.topic, self.inbox)
        entry = Message(frame.topic, content, sender), size
        del self._arrived[0]
        self.received += 1
        queue.items.append(entry)

    def _attached(self, frame: wire.AttachFrame, size: int) -> None:
        client = PID.trusted(frame.client)
        self._metadata[client] = client, payload.decode(frame.metadata)
        self._seen(size)

    def _detached(self, frame: wire.DetachFrame, size: int) -> None:
        self._metadata.pop(frame.client, None)
        self._seen(size)

    def _inbox_closed(self, _: wire.CloseInboxFrame, size: int) -> None:
        for queue in (self.inbox, *self._listeners.values()):
            queue.closed = True
        self._seen(size)

    def _seen(self, size: int) -> None:
        """Count a data frame that leaves nothing to be taken."""
        del self._arrived[0]
        self.received += 1
        self._taken += size

    def _signal(self, frame: wire.SignalFrame, _: int) -> None:
        result = None if frame.result is None else frame.result.opened()
        event = Event(frame.kind, PID.trusted(frame.sender), result, frame.reason)
        del self._arrived[0]
        self.events.items.append((event, 0))

    def _replied(self, frame: wire.ReplyFrame | wire.FinishedFrame, _: int) -> None:
        queue = self._replies.get(frame.ref)
        del self._arrived[0]
        if queue is not None:
            queue.items.append((frame, 0))

    def _learn(self, frame: wire.CatalogFrame, _: int) -> None:
        self.known = frame
        del self._arrived[0]

    def _close(self) -> None:
        queues: tuple[Queue[Any], ...] = (self.inbox, self.events)
        for queue in (*queues, *self._listeners.values(), *self._replies.values()):
            queue.closed = True
