from __future__ import annotations

import base64
import datetime as dt
import json
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from wsrelay.session import command
from wsrelay.session.command import (
    CloseCommand,
    ControlCommand,
    InvalidCommand,
    SendCommand,
    may_be_sent,
)
from wsrelay.values.message import CLOSE, CONTROL, SEND
from wsrelay.values.pid import PID
from wsrelay.wire import payload

TARGET = "{local@app:processes|k3f9.1-1}"


def _parse(topic: str, content: Any) -> command.Command:
    return command.parse(topic, payload.encode(content))


def _unusable(topic: str, content: Any) -> str:
    """The error of a command that has to be unusable."""
    given_ = _parse(topic, content)
    assert isinstance(given_, InvalidCommand)
    assert given_.topic == topic
    assert given_.error
    return given_.error


# ws.send


@settings(deadline=None)
@given(st.text())
def test_a_text_is_sent_as_text(data: str) -> None:
    assert _parse(SEND, {"type": "text", "data": data}) == SendCommand(data)


@settings(deadline=None)
@given(st.binary())
def test_bytes_are_sent_as_binary(data: bytes) -> None:
    assert _parse(SEND, {"type": "binary", "data": data}) == SendCommand(data)


@pytest.mark.parametrize("kind", ["text", "binary"])
@pytest.mark.parametrize("size", [65_536, 300_000])
def test_a_large_message_is_sent_as_it_was_written(kind: str, size: int) -> None:
    data: str | bytes = "ä" * (size // 2) if kind == "text" else b"\xff" * size
    content = memoryview(bytearray(payload.encode({"type": kind, "data": data})))
    usual, large = command.parse(SEND, bytes(content)), command.parse(SEND, content)
    assert isinstance(usual, SendCommand)
    assert isinstance(large, command.LargeSendCommand)
    assert large.content.obj is content.obj, "it is not copied"
    assert (large.data, large.size, large.frame) == (usual.data, usual.size, usual.frame)
    assert b"".join((large.head, large.content)) == usual.frame


@pytest.mark.parametrize(
    "content",
    [
        payload.encode({"type": "text", "data": "x" * 70_000})[:-1] + b"\xff",
        payload.encode({"type": "text", "data": "x" * 70_000}) + b"x",
        payload.encode({"type": "text", "data": "x" * 70_000})[:-1],
        payload.encode({"type": "binary", "data": b"x" * 70_000})[:-1],
        payload.encode({"type": "binary", "data": b"x" * 70_000, "more": 1}),
    ],
    ids=["not UTF-8", "too long", "too short", "bytes too short", "a third key"],
)
def test_a_large_send_that_is_wrong_is_as_unusable_as_a_small_one(content: bytes) -> None:
    usual = command.parse(SEND, content)
    assert isinstance(usual, InvalidCommand)
    assert command.parse(SEND, memoryview(content)) == usual


def test_a_large_send_in_another_order_is_sent_all_the_same() -> None:
    data = "x" * 70_000
    content = memoryview(payload.encode({"data": data, "type": "text"}))
    assert command.parse(SEND, content) == SendCommand(data)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "text",
        b"bytes",
        [],
        {},
        {"type": "text"},
        {"data": "text"},
        {"type": "ping", "data": "x"},
        {"type": 1, "data": "x"},
        {"type": "text", "data": b"x"},
        {"type": "text", "data": None},
        {"type": "text", "data": {"a": 1}},
        {"type": "binary", "data": "x"},
        {"type": "binary", "data": "eHg="},
        {"type": "text", "data": "x", "more": 1},
        {"Type": "text", "Data": "x"},
    ],
)
def test_a_send_of_another_shape_is_unusable(content: Any) -> None:
    _unusable(SEND, content)


# ws.close


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536])
@pytest.mark.parametrize("data", ["x", "é", b"x"])
def test_the_frame_of_a_send_is_that_of_its_command(data: str | bytes, size: int) -> None:
    kind = "text" if isinstance(data, str) else "binary"
    for content in ({"type": kind, "data": data * size}, {"data": data * size, "type": kind}):
        assert command.frame_of(payload.encode(content)) == SendCommand(data * size).frame


@settings(deadline=None)
@given(st.binary() | st.builds(payload.pack, st.dictionaries(st.text(), st.text() | st.binary())))
@example(payload.pack({"type": "text", "data": "x", "more": 1}))
@example(payload.pack({"type": "text", "data": b"x"}))
@example(b"\x82\xa4type\xa4text\xa4data\xa1\xff")
def test_what_is_no_right_send_has_no_frame(content: bytes) -> None:
    is_right = isinstance(command.parse(SEND, content), SendCommand)
    assert bool(command.frame_of(content)) is is_right


def test_a_close_has_defaults_for_all_it_says() -> None:
    assert _parse(CLOSE, None) == CloseCommand(1000, "")
    assert _parse(CLOSE, {}) == CloseCommand(1000, "")
    assert _parse(CLOSE, {"code": 4000}) == CloseCommand(4000, "")
    assert _parse(CLOSE, {"reason": "bye"}) == CloseCommand(1000, "bye")
    assert _parse(CLOSE, {"code": 1001, "reason": "bye"}) == CloseCommand(1001, "bye")


@pytest.mark.parametrize(
    "content",
    [
        1000,
        "bye",
        [1000],
        {"code": "1000"},
        {"code": 1000.0},
        {"code": True},
        {"code": None},
        {"reason": None},
        {"reason": b"bye"},
        {"code": 1000, "status": 1},
    ],
)
def test_a_close_of_another_shape_is_unusable(content: Any) -> None:
    _unusable(CLOSE, content)


_RESERVED_FOR_NO_FRAME = {1004, 1005, 1006, 1015}
"""RFC 6455 section 7.4.1: reserved, or never to be set in a close frame."""

_REGISTERED = set(range(1000, 1015)) - _RESERVED_FOR_NO_FRAME
"""Section 7.4.1 and the registry that section 11.7 opened (1012 to 1014)."""

_FREE = set(range(3000, 5000))
"""Section 7.4.2: for libraries and frameworks (3000-3999), for applications (4000-4999)."""


def test_the_codes_that_may_be_sent_are_those_of_rfc_6455() -> None:
    assert {code for code in range(5101) if may_be_sent(code)} == _REGISTERED | _FREE


def test_every_code_that_may_be_sent_closes_and_no_other_does() -> None:
    for code in [*range(5101), -1, -1000, 2**63]:
        if code in _REGISTERED | _FREE:
            assert _parse(CLOSE, {"code": code, "reason": "why"}) == CloseCommand(code, "why")
        else:
            assert str(code) in _unusable(CLOSE, {"code": code})


# ws.control


def test_an_empty_control_changes_nothing() -> None:
    assert _parse(CONTROL, {}) == ControlCommand(
        target_pid=UNSET,
        message_topic=UNSET,
        heartbeat_interval=UNSET,
        metadata=UNSET,
        cancel_on_leave=UNSET,
    )


@pytest.mark.parametrize(
    ("content", "control"),
    [
        ({"target_pid": TARGET}, ControlCommand(target_pid=PID(TARGET))),
        ({"target_pid": "{app:processes|1}"}, ControlCommand(target_pid=PID("{app:processes|1}"))),
        ({"message_topic": "chat"}, ControlCommand(message_topic="chat")),
        ({"heartbeat_interval": "1m30s"}, ControlCommand(heartbeat_interval=90.0)),
        ({"heartbeat_interval": None}, ControlCommand(heartbeat_interval=None)),
        ({"metadata": {"a": [1]}}, ControlCommand(metadata={"a": [1]})),
        ({"metadata": None}, ControlCommand(metadata=None)),
        ({"cancel_on_leave": True}, ControlCommand(cancel_on_leave=True)),
        ({"cancel_on_leave": False}, ControlCommand(cancel_on_leave=False)),
    ],
)
def test_a_control_sets_what_it_names_and_nothing_else(
    content: Any, control: ControlCommand
) -> None:
    assert _parse(CONTROL, content) == control


def test_a_control_may_set_everything_at_once() -> None:
    assert _parse(
        CONTROL,
        {
            "target_pid": TARGET,
            "message_topic": "chat",
            "heartbeat_interval": "500ms",
            "metadata": {},
            "cancel_on_leave": True,
        },
    ) == ControlCommand(
        target_pid=PID(TARGET),
        message_topic="chat",
        heartbeat_interval=0.5,
        metadata={},
        cancel_on_leave=True,
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, ""),
        ([], ""),
        ("text", ""),
        ({"target_pid": None}, "target_pid"),
        ({"target_pid": "room"}, "target_pid"),
        ({"target_pid": "{local@host}"}, "target_pid"),
        ({"message_topic": ""}, "message_topic"),
        ({"message_topic": "@exit"}, "message_topic"),
        ({"message_topic": None}, "message_topic"),
        ({"heartbeat_interval": 30}, "heartbeat_interval"),
        ({"heartbeat_interval": "soon"}, "heartbeat_interval"),
        ({"heartbeat_interval": "1ms"}, "heartbeat_interval"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {1: 2}}, "metadata"),
        ({"cancel_on_leave": None}, "cancel_on_leave"),
        ({"cancel_on_leave": 1}, "cancel_on_leave"),
        ({"target": TARGET}, "target"),
    ],
)
def test_a_wrong_control_is_unusable_and_the_field_is_named(content: Any, named: str) -> None:
    assert named in _unusable(CONTROL, content)


def test_a_control_beyond_256_kilobytes_is_refused() -> None:
    rest = len(payload.encode({"metadata": {"k": "x" * 100_000}})) - 100_000
    most = 256 * 1024 - rest
    fits, larger = ({"metadata": {"k": "x" * size}} for size in (most, most + 1))
    assert _parse(CONTROL, fits) == ControlCommand(metadata=fits["metadata"])
    assert _unusable(CONTROL, larger) == (
        "it has 262145 bytes, at most 262144 are allowed; let the process itself keep larger data, "
        "by client_pid"
    )


# Any other topic


@pytest.mark.parametrize(
    "topic", ["ws.sendd", "ws.message", "ws.join", "ws.error", "ws.Send", "ws."]
)
def test_a_topic_of_the_relay_s_that_is_no_command_is_unusable(topic: str) -> None:
    error = _unusable(topic, {"type": "text", "data": "hello"})
    assert topic in error
    assert "ws.send, ws.close, ws.control" in error


@pytest.mark.parametrize(
    ("topic", "content", "right", "wrong"),
    [
        (SEND, "hello", '{"type": "text", "data": str}', "got `str`"),
        (SEND, {"type": "json", "data": 1}, '{"type": "binary", "data": bytes}', "'json'"),
        (SEND, {"type": "text", "data": b"x"}, '{"type": "text", "data": str}', "got `bytes`"),
        (CLOSE, "bye", '{"code": int, "reason": str}', "got `str`"),
        (CONTROL, {"target": TARGET}, "target_pid, message_topic", "`target`"),
    ],
)
def test_an_error_says_what_was_given_and_what_is_right(
    topic: str, content: Any, right: str, wrong: str
) -> None:
    error = _unusable(topic, content)
    assert right in error
    assert wrong in error


@pytest.mark.parametrize("topic", ["news", "", "wsx", "WS.send"])
def test_a_topic_that_does_not_begin_with_ws_is_a_json_text(topic: str) -> None:
    given_ = _parse(topic, {"a": [1, 2.5, None, True, "ä"]})
    assert isinstance(given_, SendCommand)
    assert isinstance(given_.data, str)
    assert json.loads(given_.data) == {"topic": topic, "data": {"a": [1, 2.5, None, True, "ä"]}}


def _json_of(value: Any) -> Any:
    given_ = _parse("news", value)
    assert isinstance(given_, SendCommand)
    assert isinstance(given_.data, str)
    content = json.loads(given_.data)
    assert set(content) == {"topic", "data"}
    return content["data"]


@settings(deadline=None)
@given(st.binary())
def test_bytes_become_base64(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert _json_of(data) == text
    assert _json_of({"a": [data]}) == {"a": [text]}
    assert _json_of({data: 1}) == {text: 1}


@settings(deadline=None, max_examples=200)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_json_data_reaches_the_client_as_it_is(data: Any) -> None:
    assert _json_of(data) == data


def test_keys_that_json_has_no_form_for_become_text() -> None:
    assert _json_of({None: 1, True: 2, 5: 3, 2.5: 4, b"\xff": 5, (1, "a"): 6, "t": 7}) == {
        "null": 1,
        "true": 2,
        "5": 3,
        "2.5": 4,
        "/w==": 5,
        '[1,"a"]': 6,
        "t": 7,
    }


def test_a_moment_as_a_key_is_written_the_same_whatever_stands_beside_it() -> None:
    moment = dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC)
    (alone,) = _json_of({moment: 1})
    assert alone.startswith("2024-02-29T12:00:00")
    assert alone in _json_of({moment: 1, None: 2})


# Whatever comes

_ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(dt.UTC))
    | st.builds(msgspec.msgpack.Ext, st.integers(-128, 127), st.binary(max_size=12)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inner, max_size=3)
    ),
    max_leaves=6,
)
_FIELDS = st.sampled_from(
    [
        "type",
        "data",
        "code",
        "reason",
        "target_pid",
        "message_topic",
        "heartbeat_interval",
        "metadata",
        "cancel_on_leave",
    ]
)
_ENCODER = msgspec.msgpack.Encoder()


def _encoded(value: Any) -> bytes:
    try:
        return _ENCODER.encode(value)
    except OverflowError:  # an integer key beyond 64 bits
        return b"\xc1"


@settings(deadline=None, max_examples=500)
@given(
    st.sampled_from([SEND, CLOSE, CONTROL, "news"]) | st.text(),
    st.binary() | _ODD.map(_encoded) | st.dictionaries(_FIELDS, _ODD, max_size=4).map(_encoded),
)
@example("news", b"")
@example("news", b"\xc1")
@example("news", b"\x81\x80\x01")  # a dict as a key
@example("news", b"\xd4\x05\x00")  # an extension type that JSON has no form for
@example("news", b"\x81\xd4\x05\x00\x01")  # ... as a key
@example("news", b"\x91" * 5000 + b"\xc0")
@example("news", b"\x81\xc0" * 400 + b"\xc0")
@example(CONTROL, b"\x81\xa8metadata" + b"\x81\xa1a" * 5000)
def test_any_bytes_are_a_command_and_nothing_is_raised(topic: str, content: bytes) -> None:
    given_ = command.parse(topic, content)
    assert isinstance(given_, get_args(command.Command))
    if isinstance(given_, InvalidCommand):
        assert given_.topic == topic
        assert given_.error
    if isinstance(given_, CloseCommand):
        assert may_be_sent(given_.code)
