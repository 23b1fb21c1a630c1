"""The node's timers by themselves: when they send, what they keep, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support import until

from wsrelay import PID, wire
from wsrelay.errors import WireError
from wsrelay.node import timers
from wsrelay.node.timers import Later, Timers

pytestmark = pytest.mark.anyio

ME = PID("{local@processes|1}")
SIBLING = PID("{local@processes|2}")
STRANGER = PID("{local@other|3}")


class Kept:
    """Timers that go by a clock of their own, and what they have sent."""

    def __init__(self) -> None:
        self.now = 0
        self.sent: list[str] = []
        self.refused: list[str] = []
        self.work: list[None] = []
        self.timers = Timers(self._send, lambda: self.now)

    def _send(self, later: Later) -> Iterator[None] | None:
        self.sent.append(later.message.topic)
        return iter(self.work) if self.work else None

    def add(self, name: str, due: int, pid: PID = ME, size: int = 1) -> None:
        later = Later(pid, wire.SendFrame("to", name, b""), size)
        work = self.timers.request(name, due, later, lambda error: self.refused.append(str(error)))
        for _ in work or ():
            pass

    def pass_to(self, now: int) -> list[str]:
        """Let the clock go on and all that is due be sent."""
        self.now = now
        while self.timers.step():
            pass
        sent, self.sent = self.sent, []
        return sent


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    kept = Kept()
    yield kept
    kept.timers.close()


async def test_messages_are_sent_when_they_are_due_in_that_order(kept: Kept) -> None:
    for name, due in [("c", 30), ("a", 10), ("b", 20), ("b too", 20), ("never", 10**18)]:
        kept.add(name, due)
    assert kept.pass_to(9) == []
    assert kept.pass_to(10) == ["a"]
    assert kept.pass_to(100) == ["b", "b too", "c"]
    assert len(kept.timers) == 1


async def test_what_is_cancelled_is_not_sent_and_what_was_sent_is_not_cancelled(kept: Kept) -> None:
    kept.add("a", 10)
    kept.add("b", 10)
    kept.timers.cancel("a")
    kept.timers.cancel("a")
    kept.timers.cancel("nobody's")
    assert kept.pass_to(10) == ["b"]
    kept.timers.cancel("b")
    assert len(kept.timers) == 0
    assert not kept.timers._counts
    assert not kept.timers._sizes


async def test_cancelled_ones_leave_nothing_behind_though_they_were_due_in_a_year(
    kept: Kept,
) -> None:
    for number in range(10_000):
        kept.add(str(number), 10**18, size=10_000)
        kept.timers.cancel(str(number))
    assert len(kept.timers._heap) <= 101
    assert not kept.timers._sizes


async def test_a_timer_is_set_once(kept: Kept) -> None:
    kept.add("a", 10)
    with pytest.raises(WireError, match="the timer a is pending"):
        kept.add("a", 20)


async def test_timers_are_bounded_for_each_process(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "MOST", 3)
    for number in range(4):
        kept.add(str(number), 10)
    assert kept.refused == ["timer limit of 3 reached"]
    kept.add("a sibling's", 10, SIBLING)
    kept.timers.cancel("0")
    kept.add("4", 10)
    assert kept.refused == ["timer limit of 3 reached"]
    assert kept.pass_to(10) == ["1", "2", "a sibling's", "4"]


async def test_their_messages_are_bounded_for_each_process_and_for_each_host(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "MOST_BYTES", 1000)
    monkeypatch.setattr(timers, "_MOST_OF_A_HOST", 1500)
    kept.add("a", 10, size=900)
    kept.add("b", 10, size=200)
    kept.add("c", 10, SIBLING, size=900)
    kept.add("d", 10, STRANGER, size=900)
    assert kept.refused == [
        "timers (their messages) limit of 1000B reached",
        "timers (of host processes) limit of 1500B reached",
    ]
    assert kept.pass_to(10) == ["a", "d"]


async def test_a_process_that_counts_what_is_due_as_sent_waits_until_it_is(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node is behind: it sends those first, in portions, and refuses nobody."""
    monkeypatch.setattr(timers, "MOST", 3)
    for number in range(3):
        kept.add(str(number), 10)
    kept.now = 10
    later = Later(ME, wire.SendFrame("to", "3", b""), 1)
    work = kept.timers.request("3", 20, later, lambda error: kept.refused.append(str(error)))
    assert work is not None
    assert sum(1 for _ in work) == 1
    assert kept.sent == ["0"]
    assert not kept.refused
    assert len(kept.timers) == 3


async def test_work_in_portions_is_done_before_the_next_message(kept: Kept) -> None:
    kept.work = [None] * 3
    kept.add("a", 10)
    kept.add("b", 10)
    kept.now = 10
    steps = []
    while kept.timers.step():
        steps.append(len(kept.sent))
    assert steps == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2]


async def test_others_are_heard_while_many_are_due_at_once(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timers, "_TURN", 0.0)
    for number in range(100):
        kept.add(str(number), 0)
    heard = []

    def hear() -> None:
        heard.append(len(kept.sent))
        if len(kept.sent) < 100:
            asyncio.get_running_loop().call_soon(hear)

    hear()
    await until(lambda: len(kept.sent) == 100, "all were sent")
    assert len(heard) >= 100


async def test_one_that_cannot_be_sent_keeps_no_other_back(kept: Kept) -> None:
    send, problems = kept._send, []
    kept.timers._send = lambda later: 1 / 0 if later.message.topic == "a" else send(later)  # type: ignore[assignment,return-value]
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context["exception"]))
    kept.add("a", 0)
    kept.add("b", 0)
    await until(lambda: kept.sent, "b was sent")
    loop.set_exception_handler(None)
    assert [type(problem) for problem in problems] == [ZeroDivisionError]


async def test_the_first_to_be_due_is_what_is_waited_for() -> None:
    """By the clock of the operating system: in a moment, though the others are due in years."""
    sent: list[Any] = []
    kept = Timers(sent.append)
    try:
        for number, wait in enumerate((10**18, 10**17, 5_000_000)):
            due = kept._now() + wait
            kept.add(str(number), due, Later(ME, wire.SendFrame("to", str(number), b""), 1))
        await until(lambda: sent, "it was sent")
        assert kept._now() >= due
        assert [later.message.topic for later in sent] == ["2"]
    finally:
        kept.close()
    assert len(kept) == 0
