"""What is told of many lines at once."""

from __future__ import annotations

from typing import Any

from made_up import look

from wsrelay.console.follow import Followed


def line(number: int) -> dict[str, Any]:
    return {"time": float(number), "level": "info", "text": f"line {number}"}


def test_what_is_left_out_is_counted_by_kind() -> None:
    followed = Followed(look("process"))
    for number in range(250):
        followed.add("log", line(number))
    followed.add("trace", line(0))
    told = followed.take()
    assert told["left"] == {"log": 50}, "nothing of the trace was left out"
    assert told["trace"] == [line(0)]
    assert told["log"] == [line(number) for number in range(50, 250)]
    assert followed.take() == {}
