"""Credits for one node's clients of a process of another node."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrelay.cluster.credits import CREDIT, Credit, Receipts
from wsrelay.errors import WireError
from wsrelay.values.sizes import ITEM


def test_a_sender_stops_at_its_credit_and_goes_on_when_all_has_been_passed_on() -> None:
    credit, receipts = Credit(), Receipts()
    for _ in range(CREDIT // 1000):
        if credit.is_used:
            break
        credit.sent(1000)
        receipts.received(1000)
    total = receipts.due()
    assert total is not None
    assert CREDIT <= total < CREDIT + 1000 + ITEM
    credit.granted(total)
    assert not credit.is_used
    assert credit.waiting == 0


def test_a_message_may_be_larger_than_the_credit() -> None:
    credit, receipts = Credit(), Receipts()
    credit.sent(10 * CREDIT)
    receipts.received(10 * CREDIT)
    assert credit.is_used
    credit.granted(receipts.due() or 0)
    assert not credit.is_used


def test_a_few_small_messages_are_not_worth_a_frame() -> None:
    receipts = Receipts()
    receipts.received(1)
    assert receipts.due() is None
    receipts.received(CREDIT // 4)
    assert receipts.due() is not None
    assert receipts.due() is None


def test_a_total_that_comes_late_or_twice_does_no_harm() -> None:
    credit = Credit()
    credit.sent(2 * CREDIT)
    credit.sent(0)
    credit.granted(2 * CREDIT + 2 * ITEM)
    credit.granted(CREDIT)
    credit.granted(-1)
    assert not credit.is_used


def test_a_credit_for_more_than_was_sent_is_garbage() -> None:
    credit = Credit()
    credit.sent(1)
    with pytest.raises(WireError, match="a credit for"):
        credit.granted(2 + ITEM)


@given(
    steps=st.lists(
        st.sampled_from(["arrive", "credit", "blocks", "goes on"]) | st.integers(0, 40_000),
        max_size=80,
    )
)
def test_what_is_under_way_is_bounded_and_no_sender_stops_for_ever(
    steps: list[str | int],
) -> None:
    """The largest message is 40,000 bytes here; `blocks` and `goes on` are the process's room."""
    credit, receipts = Credit(), Receipts()
    going: deque[int] = deque()
    coming: deque[int] = deque()
    under_way, has_room = 0, True

    def grant() -> None:
        if has_room and (total := receipts.due()) is not None:
            coming.append(total)

    def arrive() -> None:
        receipts.received(going.popleft())
        grant()

    for step in steps:
        match step:
            case int() if not credit.is_used:
                credit.sent(step)
                going.append(step)
                under_way = sum(going) + len(going) * ITEM
                assert under_way < CREDIT + 40_000 + ITEM
            case "arrive" if going:
                arrive()
            case "credit" if coming:
                credit.granted(coming.popleft())
            case "blocks":
                has_room = False
            case "goes on":
                has_room = True
                grant()
    has_room = True
    grant()
    while going:
        arrive()
    while coming:
        credit.granted(coming.popleft())
    assert not credit.is_used
    assert credit.waiting == 0
