"""A timer as text."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from wsrelay import PID, Timer
from wsrelay.values.timer import cost
from wsrelay.wire import payload

ID = PID("{local@app:processes|k3f9.1f-3}")


def test_a_timer_is_text_that_makes_it_again() -> None:
    timer = Timer.of(ID)
    assert timer == "(local@app:processes|k3f9.1f-3)"
    assert timer.owner == ID
    assert timer.owner.host == "app:processes"
    for same in (
        Timer(json.loads(json.dumps(timer))),
        Timer(payload.decode(payload.encode(timer))),
        pickle.loads(pickle.dumps(timer)),  # noqa: S301 - our own
        copy.copy(timer),
    ):
        assert type(same) is Timer
        assert same == timer


@pytest.mark.parametrize(
    "text", ["", "it", ID, "(local@processes)", "(local@a|b", "(@a|b)", "(local@a|b)\n", 3, None]
)
def test_other_text_is_no_timer(text: str) -> None:
    with pytest.raises(ValueError, match="is not a timer; send_after returns one"):
        Timer(text)


def test_what_a_timer_costs_grows_with_receivers_and_payload() -> None:
    assert cost("a", "b", 1000) > 1000
    assert cost(["a", "b"], "b", 1000) > cost("a", "b", 1000)
    assert cost([], "b", 0) > 0
