"""Clocks, and both lanes as one source, by themselves: what they give, in which order, and when."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsrelay import PID, Event, Message, Tick
from wsrelay.worker.queues import Incoming, Queue, Ticks, clocks_among, soonest

ME = PID("{local@processes|1}")


# Clocks


class Clock:
    """A clock that stands still unless it is moved, and `Ticks` that go by it."""

    def __init__(self, interval: float) -> None:
        self.now = 1000.0
        self.over = False
        self.ticks = Ticks(interval, lambda: self.over, lambda: self.now)

    def take(self) -> Tick | None:
        """The tick that a channel would give now."""
        if not self.ticks.items:
            return None
        tick, size = self.ticks.items[0]
        del self.ticks.items[0]
        assert size == 0
        return tick


def test_a_tick_is_due_at_its_multiple_of_the_interval_and_not_before() -> None:
    clock = Clock(0.25)
    assert clock.take() is None
    assert clock.ticks.left() == 0.25
    clock.now += 0.25
    assert clock.take() == Tick(1, 0.0)
    assert clock.take() is None
    clock.now += 0.125
    assert clock.ticks.left() == 0.125


def test_ticks_that_were_missed_are_skipped_and_counted() -> None:
    clock = Clock(0.25)
    clock.now += 1.125
    assert clock.take() == Tick(4, 0.125)
    assert clock.take() is None
    assert clock.ticks.left() == 0.125


def test_thirty_a_second_are_sixty_in_two_seconds_whatever_the_handler_does_between() -> None:
    """No drift: where it computes for a while, it says what it missed and keeps the beat."""
    clock, begin = Clock(1 / 30), 1000.0
    chance = random.Random(4)  # noqa: S311 - no secret
    seen: list[Tick] = []
    while not seen or seen[-1].number < 60:
        while (tick := clock.take()) is None:
            clock.now += max(1e-9, clock.ticks.left())  # `select` sleeps
        seen.append(tick)
        assert clock.now - begin == pytest.approx(tick.number / 30 + tick.late)
        assert 0 <= tick.late < 1 / 30
        clock.now += chance.choice((0.001, 0.01, 0.02, 0.05, 0.1))  # the handler computes
    numbers = [tick.number for tick in seen]
    assert numbers == sorted(set(numbers))
    missed = sum(after - before - 1 for before, after in itertools.pairwise([0, *numbers]))
    assert missed > 10
    assert len(seen) + missed == numbers[-1]


@settings(deadline=None)
@given(
    st.floats(0.001, 1e6),
    st.lists(st.floats(0, 1e7), min_size=1, max_size=20),
)
@example(0.05, [0.05, 1.0])
def test_numbers_only_grow_and_no_tick_comes_before_its_time(
    interval: float, steps: list[float]
) -> None:
    clock, last = Clock(interval), 0
    for step in steps:
        clock.now += step
        due = clock.ticks.left() <= 0
        tick = clock.take()
        assert (tick is not None) == due
        if tick is not None:
            assert tick.number > last
            assert tick.late >= 0
            last = tick.number
            if (next_one := clock.take()) is not None:  # it is due now, but for rounding
                assert next_one.late <= 1e-9 * clock.now or interval < 1e-6 * clock.now
                assert next_one.number > last
                last = next_one.number


def test_a_clock_that_has_ended_gives_nothing_though_a_tick_is_due() -> None:
    for end in ("unlisten", "cancel"):
        clock = Clock(1)
        clock.now += 3.5
        if end == "unlisten":
            clock.ticks.end()
        clock.over = end == "cancel"
        assert clock.ticks.closed
        assert clock.take() is None


def test_one_waits_for_the_first_tick_of_all_clocks_that_go_and_no_longer_than_it_may() -> None:
    one, other, ended = Clock(1), Clock(5), Clock(0.1)
    ended.over = True
    clocks = [one.ticks, other.ticks, ended.ticks]
    assert soonest(clocks, None) == 1
    assert soonest(clocks, 0.5) == 0.5
    one.now += 2
    assert soonest(clocks, None) == 0
    assert soonest([ended.ticks], None) is None
    assert clocks_among([Queue(), one.ticks]) == [one.ticks]
    assert clocks_among([Queue()]) is None


# Both lanes as one


class Lanes:
    """An inbox, events, and the source of both."""

    def __init__(self) -> None:
        self.inbox: Queue[Message] = Queue()
        self.events: Queue[Event] = Queue()
        self.short: list[Message] = []
        self.ending = False
        self.incoming = Incoming(self.inbox, self.events, lambda: self.ending, self._short_way())

    def _short_way(self) -> Any:
        class ShortWay:
            """Ends, and begins again, as that of the pipe."""

            def __iter__(way) -> Any:  # noqa: N805 - inside another self
                return way

            def __next__(way) -> Message:  # noqa: N805
                if not self.short:
                    raise StopIteration
                return self.short.pop(0)

        return ShortWay()

    def say(self, *topics: str) -> None:
        self.inbox.items.extend((Message(topic, None, ME), 10) for topic in topics)

    def tell(self, *kinds: str) -> None:
        self.ending = self.ending or "CANCEL" in kinds
        self.events.items.extend((Event(kind, ME), 0) for kind in kinds)

    def take(self) -> str:
        """What the mailbox would give now."""
        if not self.incoming.items:
            return "closed" if self.incoming.closed else "waits"
        item, size = self.incoming.items[0]
        del self.incoming.items[0]
        assert size == (0 if isinstance(item, Event) else 10)
        return item.kind if isinstance(item, Event) else item.topic


@pytest.fixture
def lanes() -> Lanes:
    return Lanes()


def test_events_go_before_messages(lanes: Lanes) -> None:
    lanes.say("a", "b")
    lanes.tell("EXIT")
    assert [lanes.take() for _ in range(2)] == ["EXIT", "a"]
    lanes.tell("LINK_DOWN")
    assert [lanes.take() for _ in range(3)] == ["LINK_DOWN", "b", "waits"]


def test_cancel_comes_last_in_incoming(lanes: Lanes) -> None:
    """After the messages that were queued, those that are still on their way among them."""
    lanes.say("a")
    lanes.tell("CANCEL", "EXIT")
    assert [lanes.take() for _ in range(3)] == ["EXIT", "a", "waits"]
    lanes.say("b")
    lanes.inbox.closed = True
    lanes.tell("LINK_DOWN")
    assert [lanes.take() for _ in range(4)] == ["LINK_DOWN", "b", "CANCEL", "closed"]
    lanes.tell("EXIT")
    assert lanes.take() == "closed", "nothing comes after it"
    assert len(lanes.events.items) == 1


def test_an_inbox_that_closes_before_cancel_has_come_does_not_end_it(lanes: Lanes) -> None:
    lanes.inbox.closed = True
    assert lanes.take() == "waits"
    lanes.tell("CANCEL")
    assert [lanes.take() for _ in range(2)] == ["CANCEL", "closed"]


def test_who_takes_first_has_it(lanes: Lanes) -> None:
    """Where another channel took CANCEL, the source ends without it."""
    lanes.say("a", "b")
    lanes.tell("CANCEL")
    lanes.events.items.popleft()
    lanes.inbox.items.popleft()
    lanes.inbox.closed = True
    assert [lanes.take() for _ in range(2)] == ["b", "closed"]


def test_the_short_way_is_left_where_an_event_waits(lanes: Lanes) -> None:
    lanes.short = [Message(topic, None, ME) for topic in "abc"]
    taken = []
    for message in lanes.incoming:
        taken.append(message.topic)
        if message.topic == "b":
            lanes.tell("EXIT")
    assert taken == ["a", "b"]
    assert list(lanes.incoming) == []
    assert lanes.take() == "EXIT"
    assert [message.topic for message in lanes.incoming] == ["c"]
