"""The names of rooms, from URLs."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote_from_bytes, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrelay.gateway.room_name import room_name


def name(raw: str, path: str = "/ws", **scope: Any) -> str | None:
    return room_name({"path": unquote(raw), "raw_path": raw.encode(), **scope}, path)


@pytest.mark.parametrize(
    ("raw", "room"),
    [
        ("/ws", ""),
        ("/ws/", ""),
        ("/ws/blue", "blue"),
        ("/ws/%62lue", "blue"),
        ("/%77s/blue", "blue"),
        ("/ws/blue/", "blue/"),
        ("/ws/a/b", "a/b"),
        ("/ws/a%2Fb", "a%2Fb"),
        ("/ws/a%2fb", "a%2Fb"),
        ("/ws/a%252Fb", "a%252Fb"),
        ("/ws/a%25b%3Fc%23", "a%b?c#"),
        ("/ws/big%20room", "big room"),
        ("/ws/caf%C3%A9", "café"),
        ("/ws/caf%E9", "caf%E9"),
        ("/ws/caf%E8", "caf%E8"),
        ("/ws/%F0%9F%8E%89", "🎉"),
        ("/ws/..%2F..%2Fetc", "..%2F..%2Fetc"),
        ("/ws%2Fblue", None),
        ("/other", None),
    ],
)
def test_a_room_is_the_decoded_path_but_for_what_would_make_two_rooms_one(
    raw: str, room: str | None
) -> None:
    assert name(raw) == room


@given(
    st.lists(st.binary(max_size=3) | st.sampled_from([b"%", b"%2", b"%2F", b"/", b"2F"])),
    st.lists(st.binary(max_size=3) | st.sampled_from([b"%", b"%2", b"%2F", b"/", b"2F"])),
)
def test_two_urls_are_one_room_only_if_their_segments_are_the_same(
    one: list[bytes], two: list[bytes]
) -> None:
    rooms = [
        name("/ws/" + "/".join(quote_from_bytes(part, safe="") for part in parts))
        for parts in (one, two)
    ]
    assert (rooms[0] == rooms[1]) is ((one or [b""]) == (two or [b""]))
    assert all(room is not None and room.encode() is not None for room in rooms)


def test_without_the_raw_path_the_decoded_one_counts() -> None:
    assert room_name({"path": "/ws/a b/é"}, "/ws") == "a b/é"
    assert room_name({"path": "/ws/a", "raw_path": None}, "/ws") == "a"
    changed_on_the_way = {"path": "/ws/a", "raw_path": b"/api/ws/a%2Fb"}
    assert room_name(changed_on_the_way, "/ws") == "a"


def test_below_another_application_s_prefix_the_room_is_the_same() -> None:
    assert name("/tools/ws/a%2Fb", root_path="/tools") == "a%2Fb"


def test_rooms_at_the_root() -> None:
    assert name("/", path="") == ""
    assert name("/a%2Fb", path="") == "a%2Fb"
