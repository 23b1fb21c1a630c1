from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsrelay.printable import printable


@given(st.text())
def test_nothing_unprintable_is_left_and_the_rest_is_kept(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    if text.isprintable() and len(text) <= 200:
        assert shown == text


def test_line_breaks_and_escapes_are_shown_as_such() -> None:
    assert printable("/a\nERROR forged\x1b[2J") == r"/a\nERROR forged\x1b[2J"


def test_long_text_is_cut() -> None:
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 201) == "x" * 200 + "..."
