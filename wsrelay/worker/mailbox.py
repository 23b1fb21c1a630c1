"""What has arrived at a worker and is waiting to be taken."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import Any, Final

from wsrelay import wire
from wsrelay.errors import ChannelClosed
from wsrelay.values import current
from wsrelay.values.awaited import FUNCTIONS
from wsrelay.values.message import Event, Message, Relayed
from wsrelay.values.presence import Presence
from wsrelay.wire.tally import TAKEN, TOOK, clock

from .pipe import ShutLock, WorkerPipe
from .queues import Incoming, ItemSource, Queue, Ticks, Watch, clocks_among, soonest
from .sorting import Sorting

__all__ = ["Mailbox"]

logger = logging.getLogger(__name__)

_ACKNOWLEDGE: Final = wire.WINDOW // 4
"""Bytes taken before the node is told; the rest of the window keeps it sending meanwhile."""


_UNANSWERED: Final = 0
"""The number of a request whose answer nothing waits for."""

_COUNTED: Final = 0
"""The size of an item that goes back to its queue: it was already counted as taken."""

_LOOK_AGAIN: Final = 1.0
"""Seconds after which a thread notices that the event loop that it waits for was closed."""


class Mailbox(Sorting):
    """Reads frames from the pipe, sorts them into queues, and gives out what is there.

    A thread that waits reads the pipe for all: one thread at a time reads, the others wait for what
    it brings. Once a coroutine has waited, only the event loop reads. Two readers at once would
    tear frames apart. What the short way (`short_way`) has read and not taken is for the next one.

    A signal handler may raise anywhere in here (see `pipe`). Nothing is lost: what was read is
    sorted by the next reader, and what was taken goes back to its queue.
    """

    def __init__(self, pipe: WorkerPipe) -> None:
        super().__init__(pipe)
        self._lock: Any = threading.Lock()
        self._nothing: Queue[Any] = Queue()
        """Has no items and is never closed."""
        self._has_clocks = False
        """Whether any of the sources may be `Ticks`."""
        self._acknowledged = 0
        """How many of the bytes taken the node knows of."""
        self._numbers = itertools.count(1)
        self._reserved = False
        """Whether no thread may start to read: the event loop does, or the handler has returned."""
        self._over = False
        self._clock = clock()
        self._sorters[wire.TasksFrame] = self._asked_for_tasks
        pipe.items = self.inbox.items
        pipe.wake = self._wake_after_read
        pipe.due = _ACKNOWLEDGE
        pipe.is_simple = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    def shut(self) -> None:
        """Give out nothing more, in a child: what is here belongs to its parent."""
        self.pipe.is_simple = False
        self._lock = ShutLock()
        vars(self)["_attach"] = current.worker  # raises in coroutines, too

    def take(  # noqa: C901, PLR0912, PLR0915 - flat, for the exceptions of signal handlers and for speed
        self, *queues: ItemSource[Any], timeout: float | None = None
    ) -> tuple[ItemSource[Any], Any]:
        """Wait for the next item of the first queue that has one, up to `timeout` seconds.

        Raises `TimeoutError`, or `ChannelClosed` once all are closed and empty.
        """
        pipe = self.pipe
        taken, reading, sleeper, deadline = None, False, None, 0.0
        clocks = clocks_among(queues) if self._has_clocks else None
        looks = clocks is not None
        if timeout is not None:
            timeout = max(timeout, 0)
            deadline = time.monotonic() + timeout
        try:
            while True:
                with self._lock:
                    if reading:
                        self._sort()
                        pipe.in_read = reading = False
                        if pipe.sleepers or pipe.waiters:
                            self._wake_all()
                    # What the short way has left; and where a clock always has a tick, the pipe.
                    if (pipe.data or (looks and not self._reserved)) and not pipe.in_read:
                        pipe.in_read = reading = True
                    elif (taken := self._pop(queues)) is not None:
                        break
                    elif timeout is not None and timeout < 0:
                        raise TimeoutError  # noqa: TRY301
                    elif (pipe.in_read or self._reserved) and self._other_reads():
                        sleeper = SimpleQueue[None]()
                        pipe.sleepers.add(sleeper)
                        if not (pipe.in_read or self._reserved):
                            sleeper.put(None)  # the reader, which needs no lock, has just left
                    else:
                        pipe.in_read = reading = True
                wait = timeout
                if clocks is not None:
                    wait, looks = 0 if looks else soonest(clocks, timeout), False
                if reading:
                    try:
                        if not pipe.arrived:  # else a signal handler raised before the sorting
                            pipe.arrived += pipe.read(wait)
                    except EOFError:
                        with self._lock:
                            self._close()
                elif sleeper is not None:
                    self._sleep(sleeper, wait)
                if timeout is not None:
                    timeout = deadline - time.monotonic()
            if pipe.taken >= pipe.due:
                self._tell_taken(taken[1])
            if self._face is not FUNCTIONS:
                return taken[0], FUNCTIONS.of(taken[1])
        except BaseException:
            if reading:
                pipe.in_read = False
            if taken is not None:
                home: Any = taken[0]  # no call may come before the item is back
                if home.__class__ is Incoming:
                    home.gave_cancel = False
                    home = self.events if taken[1].__class__ is Event else self.inbox
                if home.__class__ is not Ticks:
                    home.items.appendleft((taken[1], _COUNTED))
            if sleeper is not None:
                pipe.sleepers.discard(sleeper)
            if reading or taken is not None:
                with self._lock:
                    self._wake_all()
            raise
        return taken

    async def take_async(
        self,
        *queues: ItemSource[Any],
        timeout: float | None = None,  # noqa: ASYNC109 - as in `take`
    ) -> tuple[ItemSource[Any], Any]:
        """Do what `take` does without holding up the event loop."""
        if timeout is None:
            return await self.next_async(*queues)
        self._attach()
        if timeout <= 0:
            self._readable()
        async with asyncio.timeout(timeout):
            return await self.next_async(*queues, pauses=timeout > 0)

    async def next_async(
        self, *queues: ItemSource[Any], pauses: bool = True
    ) -> tuple[ItemSource[Any], Any]:
        """Do what `take_async` does, waiting forever; nothing is awaited once an item is taken.

        `pauses`: where a clock may always have a tick, other tasks run in between.
        """
        self._attach()
        taken = None
        clocks = clocks_among(queues) if self._has_clocks else None
        try:
            if clocks is not None and pauses:
                await asyncio.sleep(0)
                self._readable()
            while True:
                with self._lock:
                    if (taken := self._pop(queues)) is not None:
                        break
                    waiter = asyncio.get_running_loop().create_future()
                    self.pipe.waiters.add(waiter)
                alarm = None if clocks is None else self._alarm(clocks)
                try:
                    await waiter
                finally:
                    self.pipe.waiters.discard(waiter)
                    if alarm is not None:
                        alarm.cancel()
            if self.pipe.taken >= self.pipe.due:
                self._tell_taken(taken[1])
        except BaseException:
            if taken is not None:
                home: Any = taken[0]  # no call may come before the item is back
                if home.__class__ is Incoming:
                    home.gave_cancel = False
                    home = self.events if taken[1].__class__ is Event else self.inbox
                if home.__class__ is not Ticks:
                    home.items.appendleft((taken[1], _COUNTED))
                with self._lock:
                    self._wake_all()
            raise
        return taken

    def listen(self, topic: str) -> Queue[Message]:
        """Return the queue that receives messages of this topic from now on."""
        topic = str.__str__(topic)  # where it is looked up, a subclass's comparison could run code
        with self._lock:
            queue = self.pipe.listeners.get(topic)
            if queue is None:
                queue = self.pipe.listeners[topic] = Queue()
                queue.closed = self.inbox.closed
            return queue

    def ticks(self, interval: float) -> Ticks:
        """Return a clock, which begins now and ends when this process is asked to end."""
        self._has_clocks = True
        return Ticks(interval, self._is_ending)

    def incoming(self) -> Incoming:
        """Return the inbox and the events as one source."""
        return Incoming(self.inbox, self.events, self._is_ending, self.pipe)

    def _is_ending(self) -> bool:
        return bool(self._ending) or self.events.closed

    def by_short_way(self, queue: ItemSource[Any]) -> Iterable[Message]:
        """Return what gives the queue's messages by the short way, as often as it is iterated."""
        if queue is self.inbox:
            return self.pipe
        return queue if isinstance(queue, Incoming) else ()

    def stopping(self) -> str:
        """Return "", "cancel" or "drain": whether this process was asked to end, and why."""
        pipe = self.pipe
        if not self._ending and (pipe.data or pipe.arrived or pipe.has_more()):
            if self._loop_thread == threading.get_ident() and self._is_attached():
                self._readable()
            else:
                try:
                    self.take(self._nothing, timeout=0)
                except TimeoutError:
                    pass
        return self._ending

    def watch(self, group: str) -> Queue[Presence]:
        """Return the queue that is shown the members of a group, and each change from then on.

        Watching a group again gives the same queue.
        """
        watch = Watch(str.__str__(group), next(self._numbers))
        if self.events is self.inbox:
            watch.items = self.inbox.items
        try:
            with self._lock:
                if (there := self._watches.get(watch.group)) is not None:
                    return there
                watch.closed = self.inbox.closed
                self._watches[watch.group] = watch
            self.pipe.write(wire.WatchFrame(watch.group, watch.number))
        except BaseException:
            self._forget_watch(watch)
            raise
        return watch

    def _forget_watch(self, watch: Watch) -> None:
        """Have the node show it nothing more, which must not wait: it may be in a cleanup."""
        if self._watches.get(watch.group) is not watch:
            return
        self.pipe.post(wire.UnwatchFrame(watch.group, watch.number))
        with self._lock:
            if self._watches.get(watch.group) is watch:
                del self._watches[watch.group]

    def unlisten(self, queue: ItemSource[Any]) -> None:
        """Close a queue of `listen` or `watch`; later messages of a topic go to the inbox again.

        It ends a clock, too. Raises `ValueError` for anything else.
        """
        if not isinstance(queue, Queue | Ticks) or queue is self.inbox or queue is self.events:
            raise ValueError(
                "unlisten() takes only a channel that listen(), ticks() or groups.watch() returned"
            )
        if isinstance(queue, Watch):
            self._forget_watch(queue)
        with self._lock:
            topic = next((t for t, other in self.pipe.listeners.items() if other is queue), None)
            if topic is not None:
                former = self.pipe.listeners.pop(topic)
                self._former = [other for other in (*self._former, former) if other.items]
            queue.end()
            self._wake_all()
            read_elsewhere = self.pipe.in_read
        if read_elsewhere:  # perhaps by a thread that waits for this very queue
            self._wake_reader()

    def merge(self) -> None:
        """Let the inbox have the events too, and what is watched, in the order of arrival."""
        with self._lock:
            self.inbox.items.extendleft(reversed(self.events.items))
            self.events = self.inbox

    def close_inbox(self) -> None:
        """Close the inbox, and have whoever waits for it see that.

        It takes no lock and never waits, as any thread may call it, and a signal handler.
        """
        self.pipe.is_simple = False
        self.inbox.closed = True
        self._wake_reader()

    def read_the_rest(self) -> None:
        """Read what has arrived, so that `received` and `unread` are exact at the end."""
        sleeper: SimpleQueue[None] = SimpleQueue()
        with self._lock:
            self._reserved = self._over = True
            self.pipe.is_simple = False
            self.pipe.sleepers.add(sleeper)
            read_elsewhere = self.pipe.in_read
        if read_elsewhere:
            self._wake_reader()
            while self.pipe.in_read:
                sleeper.get()
        with self._lock:
            try:
                self._sort()
                while frames := self.pipe.read(0):
                    self.sort(frames)
            except EOFError:
                self._close()

    def _alarm(self, clocks: list[Ticks]) -> asyncio.TimerHandle | None:
        """Wake the coroutines that wait when the next tick is due; None if none will be."""
        wait = soonest(clocks, None)
        return None if wait is None else asyncio.get_running_loop().call_later(wait, self._wake)

    def _pop(self, queues: tuple[ItemSource[Any], ...]) -> tuple[ItemSource[Any], Any] | None:
        """Take an item of the first queue that has one; the lock is held.

        Raises `ChannelClosed` if none ever will.
        """
        is_open = False
        for queue in queues:
            if queue.items:
                item, size = queue.items[0]
                del queue.items[0]
                if size:
                    self.pipe.taken += size
                    self.pipe.noted += 1
                    self.pipe.tally[TAKEN] = self.pipe.noted
                    for self.pipe.tally[TOOK] in self._clock:  # noqa: B020 - without a call
                        break
                return queue, item
            is_open = is_open or not queue.closed
        if not is_open:
            raise ChannelClosed
        return None

    def _tell_taken(self, item: Any) -> None:
        """Tell the node what it waits for: how much was taken, or that a client's join was.

        While receipts are owed, all that is taken comes through here (`due` is 0), and nothing
        takes the short way. A receipt may be written twice, if a signal handler raises.
        """
        pipe, receipts = self.pipe, self._receipts
        taken = pipe.taken
        if receipts and isinstance(item, Relayed) and item.sender in receipts:
            pipe.write(wire.JoinReadFrame(str(item.sender)))
            receipts.discard(item.sender)
        if taken >= self._acknowledged + _ACKNOWLEDGE:
            pipe.write(wire.AckFrame(taken))
            self._acknowledged = taken
        with self._lock:  # another thread may be reading the next join
            pipe.due = 0 if receipts else self._acknowledged + _ACKNOWLEDGE

    def _other_reads(self) -> bool:
        """Whether another thread, or an event loop in another thread, reads the pipe for us."""
        self._is_attached()
        mine = self._loop is not None and self._loop_thread == threading.get_ident()
        return self.pipe.in_read or (self._reserved and not mine)

    def _is_attached(self) -> bool:
        """Whether an event loop reads the pipe; forgets one that was closed."""
        if self._loop is not None and self._loop.is_closed():
            self._loop = None
            self._reserved = self._over
        return self._loop is not None

    def _sleep(self, sleeper: SimpleQueue[None], timeout: float | None) -> None:
        """Wait for what another reader brings."""
        if self._loop is not None:
            timeout = _LOOK_AGAIN if timeout is None else min(timeout, _LOOK_AGAIN)
        try:
            sleeper.get(timeout=timeout)
        except Empty:
            pass
        self.pipe.sleepers.discard(sleeper)

    def _wake_reader(self) -> None:
        """Have the thread that reads look at its queue again.

        Only bytes wake it, so the node is sent a request whose answer nothing waits for.
        """
        self.pipe.post(wire.MembersFrame(_UNANSWERED, ""))

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
            self.pipe.is_simple = False
            self.pipe.waiters.clear()
            self._receive_in_coroutines()
            if self.pipe.data and not self.pipe.in_read:  # what the short way has left
                self.sort(self.pipe.read(0))
        self.pipe.attach(loop)
        self.pipe.never_block()
        loop.add_reader(self.pipe.ends, self._readable)

    def _asked_for_tasks(self, frame: wire.TasksFrame, _: int) -> None:
        """Tell of them in the event loop, if there is one, once this frame is sorted."""
        del self.pipe.arrived[0]
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell_tasks, frame.ref)

    def _tell_tasks(self, ref: int) -> None:
        from .tasks import tell_tasks  # noqa: PLC0415 - needed only while somebody looks

        tell_tasks(self.pipe.stacks, ref)

    def _readable(self) -> None:
        """Read for everyone in the event loop, unless a thread still does."""
        try:
            with self._lock:
                if self.pipe.in_read or self._over:
                    return
                try:
                    if not self.pipe.arrived:
                        self.pipe.arrived += self.pipe.read(0)
                    self._sort()
                except EOFError:
                    if self._loop is not None:
                        self._loop.remove_reader(self.pipe.ends)
                    self._close()
                self._wake_all()
        except BaseException:
            if self._loop is not None and self.pipe.arrived:
                self._loop.call_soon(self._readable)
            raise

    def _wake_after_read(self) -> None:
        """Wake all after a read by the short way, which has sorted nothing."""
        with self._lock:
            self._wake_all()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._readable)

    def _wake_all(self) -> None:
        """Wake all that wait, to look at their queues again; the lock is held."""
        for sleeper in tuple(self.pipe.sleepers):
            sleeper.put(None)
        if self.pipe.waiters and self._loop is not None:
            if self._loop_thread == threading.get_ident():
                self._wake()
            elif not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        """Wake the coroutines that wait; called in the event loop's thread."""
        for waiter in tuple(self.pipe.waiters):
            if not waiter.done():
                waiter.set_result(None)
