"""Where each frame that arrives belongs: what is done with it before it can be taken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from wsrelay import wire
from wsrelay.values.awaited import COROUTINES, FUNCTIONS
from wsrelay.values.message import CANCEL, JOIN, Event, Message
from wsrelay.values.pid import PID
from wsrelay.values.presence import Presence
from wsrelay.values.trace_context import TRACED, TracedPID, split
from wsrelay.wire import meta, payload
from wsrelay.wire.tally import TAKEN

from .pipe import WorkerPipe
from .queues import Queue, Watch

__all__ = ["Sorting"]

logger = logging.getLogger(__name__)


class Sorting:
    """The queues of a process, and a sorter for each kind of frame, which fills them.

    All of it is done by one thread at a time: the mailbox holds its lock.
    """

    def __init__(self, pipe: WorkerPipe) -> None:
        self.inbox: Queue[Any] = Queue()
        self.events: Queue[Event] = Queue()
        self._replies: dict[int, Queue[Any]] = {}
        self._receipts: set[str] = set()
        """Clients whose `ws.join` the node wants to know to be read, until it is."""
        self._former: list[Queue[Message]] = []
        """Queues that were not empty when `unlisten` closed them."""
        self._watches: dict[str, Watch] = {}
        self.pipe = pipe
        self._sorters: dict[type[Any], Callable[[Any, int], None]] = {
            wire.RelayFrame: self._relayed,
            wire.DeliverFrame: self._posted,
            wire.AttachFrame: self._attached,
            wire.DetachFrame: self._detached,
            wire.CloseInboxFrame: self._inbox_closed,
            wire.PresenceFrame: self._shown,
            wire.SignalFrame: self._signal,
            wire.ReplyFrame: self._replied,
            wire.FinishedFrame: self._replied,
            wire.CatalogFrame: self._learn,
            wire.CalledFrame: self._called,
        }
        self.known = wire.CatalogFrame([], {})
        """What can be spawned."""
        self._face = FUNCTIONS
        """The classes of what is sorted: those of coroutines, once the event loop reads."""
        self._ending = ""
        """What `stopping` returns, as far as it has been read."""

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
        queues = (self.inbox, *self.pipe.listeners.values(), *self._former)
        items = (item for queue in queues for item, _ in queue.items)
        return {item.sender for item in items if isinstance(item, Message) and item.topic == JOIN}

    def sort(self, frames: Iterable[tuple[wire.ToWorker, int]]) -> None:
        """Put frames with their sizes into the queues; other threads must be kept out."""
        self.pipe.arrived += frames
        self._sort()

    def _sort(self) -> None:
        """Put what has arrived into the queues; the lock is held.

        A sorter removes its frame once all that is left to do cannot be interrupted: lines without
        a call, and at most one call, in the last of them. What it does before that may be done
        twice.
        """
        arrived, sorters = self.pipe.arrived, self._sorters
        while arrived:
            frame, size = arrived[0]
            sorters[type(frame)](frame, size)

    def _receive_in_coroutines(self) -> None:
        """Make messages and clients those of `wsrelay.aio`; the lock is held."""
        self._face, of = COROUTINES, COROUTINES.of
        for pid, (client, metadata) in self.pipe.clients.items():
            self.pipe.clients[pid] = of(client), metadata
        for queue in (self.inbox, *self.pipe.listeners.values(), *self._former):
            for at, (item, size) in enumerate(queue.items):
                queue.items[at] = of(item), size

    def _relayed(self, frame: wire.RelayFrame, size: int) -> None:
        content = frame.payload
        client, content["metadata"] = self.pipe.clients[frame.client]
        content["client_pid"] = client
        queue = self.pipe.listeners.get(frame.topic, self.inbox)
        entry = self._face.relayed(frame.topic, content, client), size
        del self.pipe.arrived[0]
        self.pipe.received += 1
        queue.items.append(entry)

    def _posted(self, frame: wire.DeliverFrame, size: int) -> None:
        sender, data = PID.trusted(frame.sender), frame.payload
        if data[:1] == TRACED:
            trace, data = split(data)
            sender = TracedPID.of(sender, trace)
        try:
            content = payload.decode(data)
        except (ValueError, RecursionError) as error:
            logger.error("a message from %s is not data: %s", sender, error)  # noqa: TRY400
            self._drop(size)
            return
        queue = self.pipe.listeners.get(frame.topic, self.inbox)
        entry = self._face.message(frame.topic, content, sender), size
        del self.pipe.arrived[0]
        self.pipe.received += 1
        queue.items.append(entry)

    def _called(self, frame: wire.CalledFrame, size: int) -> None:
        sender, data = PID.trusted(frame.sender), frame.payload
        if data[:1] == TRACED:
            trace, data = split(data)
            sender = TracedPID.of(sender, trace)
        try:
            content = payload.decode(data)
        except (ValueError, RecursionError) as error:
            logger.error("a call from %s is not data: %s", sender, error)  # noqa: TRY400
            self._drop(size)
            return
        queue = self.pipe.listeners.get(frame.topic, self.inbox)
        entry = self._face.called.known(frame.topic, content, sender, frame.call), size
        del self.pipe.arrived[0]
        self.pipe.received += 1
        queue.items.append(entry)

    def _attached(self, frame: wire.AttachFrame, size: int) -> None:
        metadata = payload.decode(frame.metadata)
        former, trace = self.pipe.clients.get(frame.client), frame.trace
        if former is not None and not trace:
            trace = former[0].trace
        given = {} if metadata is None else metadata
        client = self._face.client.known(frame.client, given, trace)
        self.pipe.clients[client] = client, metadata
        if frame.receipt:
            self._receipts.add(client)
            self.pipe.due = 0
        self._seen(size)

    def _detached(self, frame: wire.DetachFrame, size: int) -> None:
        self.pipe.clients.pop(frame.client, None)
        self._seen(size)

    def _inbox_closed(self, _: wire.CloseInboxFrame, size: int) -> None:
        self.pipe.is_simple = False
        queues: tuple[Queue[Any], ...] = (self.inbox, *self.pipe.listeners.values())
        for queue in (*queues, *self._watches.values()):
            queue.closed = True
        self._seen(size)

    def _shown(self, frame: wire.PresenceFrame, size: int) -> None:
        watch = self._watches.get(frame.group)
        if watch is None or watch.number != frame.watch:
            self._drop(size)  # its watch has been ended
            return
        kind = frame.kind
        members = [(PID.trusted(pid), meta.decode(data)) for pid, data in frame.members]
        shown = [(Presence(kind, pid, content), 0) for pid, content in members]
        shown[-1] = shown[-1][0], size
        del self.pipe.arrived[0]
        self.pipe.received += 1
        watch.items.extend(shown)

    def _seen(self, size: int) -> None:
        """Count a data frame that leaves nothing to be taken."""
        del self.pipe.arrived[0]
        self.pipe.received += 1
        self.pipe.taken += size

    def _drop(self, size: int) -> None:
        """Count a data frame that would have been taken, and never will be."""
        self.pipe.noted += 1
        self.pipe.tally[TAKEN] = self.pipe.noted
        self._seen(size)

    def _signal(self, frame: wire.SignalFrame, _: int) -> None:
        result = None if frame.result is None else frame.result.opened()
        event = Event(frame.kind, PID.trusted(frame.sender), result, frame.reason)
        del self.pipe.arrived[0]
        if event.kind == CANCEL:
            self._ending = "drain" if frame.drains else "cancel"
        self.events.items.append((event, 0))

    def _replied(self, frame: wire.ReplyFrame | wire.FinishedFrame, _: int) -> None:
        queue = self._replies.get(frame.ref)
        del self.pipe.arrived[0]
        if queue is not None:
            queue.items.append((frame, 0))

    def _learn(self, frame: wire.CatalogFrame, _: int) -> None:
        self.known = frame
        del self.pipe.arrived[0]

    def _close(self) -> None:
        self.pipe.is_simple = False
        queues: tuple[Queue[Any], ...] = (self.inbox, self.events, *self._watches.values())
        for queue in (*queues, *self.pipe.listeners.values(), *self._replies.values()):
            queue.closed = True
