from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrelay.values.printable import escaped, escaped_in_json, indented, printable, shortened

DANGEROUS = [
    *(chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))),
    *"\u2028\u2029\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    *("\ud800", "\udfff"),
]


def dangerous(text: str) -> list[str]:
    return [c for c in text if c in DANGEROUS or unicodedata.category(c) in ("Cc", "Cs")]


@given(st.text(st.characters() | st.sampled_from(DANGEROUS)))
def test_no_character_that_a_terminal_obeys_is_left_and_the_rest_is_kept(text: str) -> None:
    for shown in (printable(text), escaped(text)):
        assert not dangerous(shown)
    assert not dangerous(indented(text).replace("\n", ""))
    if not dangerous(text):
        assert escaped(text) == indented(text) == text


@pytest.mark.parametrize("character", DANGEROUS, ids=ascii)
def test_each_of_them_is_shown_as_python_would(character: str) -> None:
    assert escaped(f"a{character}b") == f"a{ascii(character)[1:-1]}b"


def test_ordinary_text_of_all_languages_stays_as_it_is() -> None:
    text = "voilà\xa0! 日本語\u3000テスト 👩‍👩‍👧 שלום"
    assert printable(text) == text


def test_line_breaks_and_escapes_are_shown_as_such() -> None:
    assert printable("/a\nERROR forged\x1b[2J") == r"/a\nERROR forged\x1b[2J"


def test_long_text_is_cut() -> None:
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 201) == "x" * 200 + "..."


@given(st.text(st.sampled_from("ab \t\r\n\x1b\u2028")))
def test_no_line_below_the_first_begins_where_a_line_of_the_log_does(text: str) -> None:
    shown = indented(text)
    assert all(not line or line.startswith("    ") for line in shown.split("\n")[1:])
    assert indented(shown) == shown


def test_a_traceback_keeps_its_shape() -> None:
    text = "Traceback (most recent call last):\n  File 'x', line 1\n    raise\nError"
    assert indented(f"crashed\n{text}").split("\n    ", 1)[1].replace("\n    ", "\n") == text


@pytest.mark.parametrize("length", [10, 4096, 4097, 1_000_000])
@pytest.mark.parametrize("character", ["x", "\x1b", "\n"])
def test_a_shortened_text_has_its_begin_its_end_and_no_more(length: int, character: str) -> None:
    shown = shortened(f"begin{character * length}end")
    assert shown.startswith("begin")
    assert shown.endswith("end")
    assert len(shown) < 4096 + 50


@given(st.text(st.characters() | st.sampled_from(DANGEROUS)))
def test_escaped_in_json_it_is_the_same_json(text: str) -> None:
    line = escaped_in_json(json.dumps(text, ensure_ascii=False))
    assert json.loads(line) == text
    assert not dangerous(line)
