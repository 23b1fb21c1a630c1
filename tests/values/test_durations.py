from __future__ import annotations

import math
import re
from datetime import timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsrelay.values import durations

UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
PART = r"(\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|mm|m|h|d|w|y)"
DURATION = re.compile(rf"[+-]?(0|({PART})+)")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("10ms", 0.01),
        ("1.5s", 1.5),
        ("2h", 7200.0),
        ("1h1m1s1ms", 3661.001),
        ("0", 0.0),
        ("0s", 0.0),
    ],
)
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert durations.parse(text) == pytest.approx(seconds)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9999), st.sampled_from(sorted(UNITS))), min_size=1))
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{count}{unit}" for count, unit in parts)
    seconds = durations.parse(text)
    assert isinstance(seconds, float)
    assert seconds == pytest.approx(sum(count * UNITS[unit] for count, unit in parts), abs=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "30",
        "s",
        "30 s",
        " 30s",
        "30s ",
        "30s\n",
        "1x",
        "1..5s",
        "1m30",
        "nan",
        "infs",
        "1e3s",
    ],
)
def test_text_that_is_no_duration_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        durations.parse(text)


@pytest.mark.parametrize("text", ["1m 30s", "1m, 30s", "1s!2s", "1m and 30s", "1h-5s"])
def test_nothing_may_stand_between_the_parts(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        durations.parse(text)


@pytest.mark.parametrize("given_", [None, 30, 30.0, True, b"30s", ["30s"]])
def test_what_is_no_text_is_refused_and_named(given_: object) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(given_))):
        durations.parse(given_)


@settings(deadline=None)
@given(st.text(alphabet="0123456789.+-hmsuny x", max_size=12) | st.text(max_size=12))
@example("9" * 400 + "s")
@example("-1s")
def test_any_text_is_a_duration_from_zero_up_or_a_value_error(text: str) -> None:
    try:
        seconds = durations.parse(text)
    except ValueError:
        return
    assert DURATION.fullmatch(text)
    assert 0.0 <= seconds < float("inf")


@pytest.mark.parametrize("text", ["1000000001s", "32y", "9" * 400 + "s"])
def test_a_duration_is_as_long_as_a_number_of_seconds_may_be(text: str) -> None:
    assert durations.parse("1000000000s") == durations.seconds_of(1e9, "seconds")
    with pytest.raises(ValueError, match=r"^'\d{1,79}.* is too long; the maximum is 1e\+09s"):
        durations.parse(text)


def test_a_negative_duration_is_too_short() -> None:
    with pytest.raises(ValueError, match="too short"):
        durations.parse("-1s")


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers(0, 5000))
def test_the_least_itself_is_long_enough_and_nothing_below_it(given_: int, least: int) -> None:
    if given_ >= least:
        assert durations.parse(f"{given_}ms", least=least / 1000) == pytest.approx(given_ / 1000)
    else:
        with pytest.raises(ValueError, match=f"the minimum is {least:g}ms"):
            durations.parse(f"{given_}ms", least=least / 1000)


# Numbers of seconds


@pytest.mark.parametrize("number", [0, 1, 0.5, 1e9, np.float32(0.5), np.int64(3), Fraction(1, 30)])
def test_a_number_of_seconds_is_any_number(number: Any) -> None:
    seconds = durations.seconds_of(number, "seconds")
    assert type(seconds) is float
    assert seconds == float(number)


@pytest.mark.parametrize("given", [-1, -0.001, 1e9 + 1, math.nan, math.inf, -math.inf, 10**400])
def test_seconds_out_of_bounds_are_refused_with_the_bounds(given: Any) -> None:
    with pytest.raises(ValueError, match=r"interval: .* seconds; it is from 0 to 1e\+09"):
        durations.seconds_of(given, "interval")
    with pytest.raises(ValueError, match=r"^interval: 0 seconds; it is from 0.001 to 1e\+09$"):
        durations.seconds_of(0, "interval", least=0.001)


@pytest.mark.parametrize("given", ["30s", "1", b"1", None, True, [1], 3j, timedelta(seconds=1)])
def test_what_is_no_number_of_seconds_is_refused_with_what_is(given: Any) -> None:
    with pytest.raises(TypeError, match=r"interval: .* is not a number of seconds, like 0.5 or 30"):
        durations.seconds_of(given, "interval")
