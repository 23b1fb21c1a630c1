"""What channels take from: queues of what has arrived, clocks, and both lanes as one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar

from wsrelay.values.message import CANCEL, Event, Message, Tick
from wsrelay.values.presence import Presence

__all__ = ["Incoming", "ItemSource", "Queue", "Ticks", "Watch", "clocks_among", "soonest"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Items(Protocol[T_co]):
    """What the mailbox does with the items of a source, holding its lock: look, and take.

    Each item comes with the number of bytes that taking it frees.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, first: int, /) -> tuple[T_co, int]: ...
    def __delitem__(self, first: int, /) -> None: ...


class ItemSource(Protocol[T_co]):
    """What a channel takes from; once it is closed and has no items, it will have none again."""

    @property
    def items(self) -> Items[T_co]:
        """Its items; false if it has none at the moment."""

    @property
    def closed(self) -> bool:
        """Whether nothing more will come."""


class Queue(Generic[T]):
    """Items in order of arrival, each with the number of bytes that taking it frees."""

    __slots__ = ("closed", "items")

    def __init__(self) -> None:
        self.items: deque[tuple[T, int]] = deque()
        self.closed = False

    def end(self) -> None:
        """Let nothing more come; what is there can be taken."""
        self.closed = True


class Watch(Queue[Presence]):
    """What a watch of a group shows; `number` tells it from an earlier watch of the same group."""

    __slots__ = ("group", "number")

    def __init__(self, group: str, number: int) -> None:
        super().__init__()
        self.group = group
        self.number = number


class Ticks:
    """A clock as a source: tick n is due at its start + n * interval, in seconds.

    Nothing runs and nothing is stored between two ticks: whether one is due, which and how late, is
    worked out when a channel looks. So ticks that were missed meanwhile are skipped. One that was
    taken and could not be given out, since a signal handler raised, counts as missed too.
    """

    __slots__ = ("_ended", "_given", "_interval", "_is_ending", "_next", "_now", "_start")

    def __init__(
        self,
        interval: float,
        is_ending: Callable[[], bool],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = interval
        self._is_ending = is_ending
        self._now = now
        self._start = now()
        self._next = 1
        self._given = 0
        self._ended = False

    @property
    def items(self) -> Ticks:
        """Itself."""
        return self

    @property
    def closed(self) -> bool:
        """Whether it was ended, or the process is asked to come to its end."""
        return self._ended or self._is_ending()

    def end(self) -> None:
        """Give no more ticks."""
        self._ended = True

    def left(self) -> float:
        """Return how many seconds are left until the next tick is due."""
        return self._start + self._next * self._interval - self._now()

    def __len__(self) -> int:
        return 0 if self.left() > 0 or self.closed else 1

    def __getitem__(self, _: int) -> tuple[Tick, int]:
        passed = self._now() - self._start
        self._given = number = max(self._next, int(passed / self._interval))
        return Tick(number, max(0.0, passed - number * self._interval)), 0

    def __delitem__(self, _: int) -> None:
        self._next = self._given + 1


def clocks_among(sources: Iterable[ItemSource[Any]]) -> list[Ticks] | None:
    """Return the clocks among the sources, None if there are none."""
    return [source for source in sources if isinstance(source, Ticks)] or None


def soonest(clocks: list[Ticks], timeout: float | None) -> float | None:
    """Return how long to wait, at most `timeout` seconds (None: forever), for the next tick."""
    waits = [max(clock.left(), 0.0) for clock in clocks if not clock.closed]
    if timeout is not None:
        waits.append(timeout)
    return min(waits, default=None)


class Incoming:
    """The inbox and the events as one source: events first, but CANCEL after all messages.

    It holds nothing itself, so that what is not taken from it is there for the other channels.
    """

    __slots__ = ("_at", "_events", "_inbox", "_is_ending", "_pipe", "gave_cancel")

    def __init__(
        self,
        inbox: Queue[Message],
        events: Queue[Event],
        is_ending: Callable[[], bool],
        pipe: Iterator[Message],
    ) -> None:
        self._inbox = inbox
        self._events = events
        self._is_ending = is_ending
        self._pipe = pipe
        self._at: tuple[deque[tuple[Any, int]], int] = inbox.items, 0
        """Where the first item is, since `__len__` looked for it."""
        self.gave_cancel = False
        """Whether it has given CANCEL: then nothing follows."""

    @property
    def items(self) -> Incoming:
        """Itself."""
        return self

    @property
    def closed(self) -> bool:
        """Whether CANCEL was given, or the inbox is closed and another channel has taken it.

        The inbox may close a moment before CANCEL arrives.
        """
        return self.gave_cancel or (self._inbox.closed and self._is_ending())

    def __len__(self) -> int:
        messages, events = self._inbox.items, self._events.items
        if self.gave_cancel:
            return 0
        for index, (event, _) in enumerate(events):
            if event.kind != CANCEL:
                self._at = events, index
                return 1
        if messages:
            self._at = messages, 0
            return 1
        self._at = events, 0
        return 1 if events and self._inbox.closed else 0

    def __getitem__(self, _: int) -> tuple[Message | Event, int]:
        items, index = self._at
        return items[index]

    def __delitem__(self, _: int) -> None:
        items, index = self._at
        self.gave_cancel = items is self._events.items and items[index][0].kind == CANCEL
        del items[index]

    def __iter__(self) -> Iterator[Message]:
        """Yield messages that come by the short way, as long as no event waits."""
        events = self._events.items
        if not events:
            for message in self._pipe:
                yield message
                if events:
                    return
