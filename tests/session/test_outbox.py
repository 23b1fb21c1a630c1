from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsrelay.session.command import SendCommand
from wsrelay.session.outbox import Outbox, Overflow
from wsrelay.values.sizes import ITEM


def _bytes(data: str | bytes) -> int:
    return ITEM + len(data.encode() if isinstance(data, str) else data)


def test_messages_leave_in_the_order_in_which_they_came() -> None:
    outbox = Outbox(100)
    given_: list[str | bytes] = ["one", b"two", "three", b""]
    for data in given_:
        outbox.put(SendCommand(data))
    assert [outbox.get().data for _ in given_] == given_


def test_an_empty_outbox_is_false_and_has_nothing_to_take() -> None:
    outbox = Outbox(100)
    assert not outbox
    with pytest.raises(IndexError):
        outbox.get()
    outbox.put(SendCommand(""))
    assert outbox
    assert outbox.get().data == ""
    assert not outbox


def test_text_counts_as_its_utf_8() -> None:
    outbox = Outbox(100)
    for data, size in (("abc", 3), ("äöü", 9), ("€", 12), ("🙂", 16), (b"\xff\xff", 18)):
        outbox.put(SendCommand(data))
        assert outbox.size == size + len(outbox) * ITEM


def test_the_limit_itself_is_kept_and_one_byte_more_is_not() -> None:
    outbox = Outbox(10 + 3 * ITEM)
    assert outbox.put(SendCommand(b"12345"))
    assert outbox.put(SendCommand(b"1234"))
    assert outbox.put(SendCommand(b"1"))
    outbox.drop_newest()
    assert not outbox.put(SendCommand(b"12"))


def test_messages_without_content_fill_an_outbox_too() -> None:
    outbox = Outbox(100 * ITEM)
    kept = [outbox.put(SendCommand("")) for _ in range(101)]
    assert kept == [True] * 100 + [False]


def test_a_message_larger_than_the_limit_fits_where_nothing_else_waits() -> None:
    outbox = Outbox(10)
    assert outbox.put(SendCommand(b"x" * 100))
    assert outbox.size == 100 + ITEM
    assert not outbox.put(SendCommand(b""))
    outbox.clear()
    assert outbox.put(SendCommand(b"x" * 100))


def test_a_message_over_the_limit_is_kept_all_the_same() -> None:
    outbox = Outbox(3)
    outbox.put(SendCommand("one"))
    assert not outbox.put(SendCommand("two"))
    assert [outbox.get().data, outbox.get().data] == ["one", "two"]


_STEPS = st.lists(
    st.text(max_size=12) | st.binary(max_size=12) | st.sampled_from([None, True]), max_size=40
)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 10 * ITEM), _STEPS)
def test_the_accounts_are_right_after_any_steps(
    limit: int, steps: list[str | bytes | bool | None]
) -> None:
    """None takes a message, True clears, everything else is put."""
    outbox = Outbox(limit)
    waiting: list[str | bytes] = []
    for step in steps:
        if step is True:
            outbox.clear()
            waiting.clear()
        elif step is None:
            if waiting:
                assert outbox.get().data == waiting.pop(0)
        elif isinstance(step, str | bytes):
            waiting.append(step)
            kept = sum(map(_bytes, waiting)) <= limit or len(waiting) == 1
            assert outbox.put(SendCommand(step)) is kept
        assert len(outbox) == len(waiting)
        assert outbox.size == sum(map(_bytes, waiting))
    assert [outbox.get().data for _ in waiting] == waiting
    assert outbox.size == 0


def test_the_policies_are_named_as_in_a_configuration() -> None:
    assert Overflow("close") is Overflow.CLOSE
    assert Overflow("pause") is Overflow.PAUSE
