"""What a worker counts of its timers."""

from __future__ import annotations

import pytest

from wsrelay import TooMany
from wsrelay.worker import timers
from wsrelay.worker.timers import PendingTimers


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(timers, "MOST", 40)
    monkeypatch.setattr(timers, "MOST_BYTES", 1000)
    return 40


def test_up_to_the_bound_timers_are_counted_and_the_next_raises(few: int) -> None:
    pending = PendingTimers(lambda: 0)
    for number in range(few):
        pending.add(str(number), 10, 1)
    with pytest.raises(TooMany, match="timer limit of 40 reached"):
        pending.add("more", 10, 1)
    pending.remove("3")
    pending.remove("3")
    pending.add("more", 10, 1)
    with pytest.raises(TooMany):
        pending.add("one more", 10, 1)


def test_their_messages_are_bounded_together() -> None:
    pending = PendingTimers(lambda: 0)
    pending.add("first", 10, 900)
    with pytest.raises(TooMany, match=r"^timers \(their messages\) limit of 1000B reached$"):
        pending.add("more", 10, 200)
    pending.remove("first")
    pending.add("more", 10, 200)


def test_what_is_due_is_pending_no_more(few: int) -> None:
    now = 0
    pending = PendingTimers(lambda: now)
    for _ in range(5):
        for number in range(few):
            pending.add(f"{now} {number}", now + 10, 25)
        with pytest.raises(TooMany):
            pending.add("more", now, 1)
        now += 10


def test_a_worker_that_sets_short_ones_without_end_keeps_few_in_mind() -> None:
    now = 0
    pending = PendingTimers(lambda: now)
    for now in range(10_000):
        pending.add(str(now), now + 3, 1)
    assert len(pending._pending) <= 32
    assert pending._bytes == len(pending._pending)
