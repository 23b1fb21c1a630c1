"""Frames between nodes as bytes."""

from __future__ import annotations

import ast
import inspect
import struct
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrelay.cluster import frames
from wsrelay.cluster.frames import PeerFrame, PeerSendFrame
from wsrelay.cluster.framing import KINDS, pack, unpack
from wsrelay.errors import WireError
from wsrelay.values.pid import PID
from wsrelay.wire import SMALL

MB = 1024 * 1024

TO = ["{a@app:processes|0-1}", "{a@app:processes|0-2}"]


def message(payload: bytes, to: list[str] | None = None) -> PeerSendFrame:
    return PeerSendFrame(TO if to is None else to, "{b@app:processes|0-1}", "chat", payload)


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1, MB])
def test_a_frame_is_read_as_it_was_written(size: int) -> None:
    frame = message(b"x" * size)
    read = unpack(pack(frame))
    assert type(read) is PeerSendFrame
    assert (read.to, read.sender, read.topic) == (frame.to, frame.sender, frame.topic)
    assert bytes(read.payload) == frame.payload


def test_pids_are_written_as_their_text() -> None:
    frame = message(b"", [PID(TO[0])])
    assert unpack(pack(frame)) == message(b"", [TO[0]])


def test_the_payload_of_a_large_frame_is_no_copy() -> None:
    data = pack(message(b"x" * MB))
    read = unpack(data)
    assert isinstance(read, PeerSendFrame)
    assert memoryview(read.payload).obj is data


def test_a_payload_that_is_less_than_half_of_its_frame_does_not_keep_it() -> None:
    read = unpack(pack(message(b"x" * 1000, ["n" * 100] * 1000)))
    assert isinstance(read, PeerSendFrame)
    assert type(read.payload) is bytes


def test_every_class_with_a_tag_is_a_kind_of_frame() -> None:
    module = ast.parse(inspect.getsource(frames))
    tagged = {
        node.name
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef) and any(word.arg == "tag" for word in node.keywords)
    }
    assert {kind.__name__ for kind in KINDS} == tagged != set()
    assert all(issubclass(kind, PeerFrame) for kind in KINDS)


@given(st.binary(max_size=60))
def test_garbage_is_told_and_nothing_else_is_raised(data: bytes) -> None:
    try:
        frame = unpack(data)
    except WireError:
        return
    assert isinstance(frame, PeerFrame)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [9999],
        ["text"],
        [10],
        [10, [], None, "topic", b"", "one more"],
        [10, [], None, "topic", "text in place of bytes"],
        [10, ["n" * 1001], None, "topic", b""],
        [10, ["n"] * 10_001, None, "topic", b""],
        {"type": 10},
    ],
)
def test_what_is_no_frame_of_ours_is_told(fields: object) -> None:
    with pytest.raises(WireError, match="bytes are not a frame of a node: "):
        unpack(msgspec.msgpack.encode(fields))


def test_what_is_nested_without_end_is_told() -> None:
    with pytest.raises(WireError):
        unpack(b"\x95\x0a" + b"\x91" * 10_000)


def test_a_frame_that_would_be_large_only_when_decoded_is_refused_before_that() -> None:
    bomb = b"\x95\x0a\xdd" + struct.pack(">I", 10 * MB) + b"\xa0" * (10 * MB)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="elements"):
            unpack(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MB
