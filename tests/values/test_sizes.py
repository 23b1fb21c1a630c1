from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrelay.values import sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("100", 100),
        ("100B", 100),
        ("4KB", 4096),
        ("4K", 4096),
        ("4KiB", 4096),
        ("4 MB", 4 * 1024**2),
        ("512mb", 512 * 1024**2),
        ("1.5GB", 3 * 512 * 1024**2),
        ("2TB", 2 * 1024**4),
        (7, 7),
    ],
)
def test_a_size_is_read(text: Any, size: int) -> None:
    assert sizes.parse(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "4XB", "MB", "1,5GB", -1, True, 1.5, None, []])
def test_what_is_no_size_is_refused_with_what_was_given(text: Any) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared
        sizes.parse(text)
    expected = f"{text!r} is not a size; write it like '512MB', '64KB' or '1.5GB'"
    assert str(raised.value) == expected


@given(st.integers(0, 2**60))
def test_a_size_that_is_shown_is_read_again(size: int) -> None:
    assert sizes.parse(sizes.show(size)) == size
