from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsrelay.errors import RelayRefused
from wsrelay.session import header
from wsrelay.session.header import RelayHeader, TargetSpec
from wsrelay.values.pid import PID
from wsrelay.wire import payload

TARGET = "{local@app:processes|k3f9.1-1}"

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_OBJECTS = st.dictionaries(st.text(), _JSON, max_size=4)


def _parse(**fields: Any) -> RelayHeader:
    return header.parse(json.dumps({"target_pid": TARGET, **fields}).encode(), "local")


def test_a_target_alone_is_enough_and_the_rest_has_defaults() -> None:
    assert _parse() == RelayHeader(
        target_pid=PID(TARGET),
        message_topic="ws.message",
        heartbeat_interval=None,
        metadata=None,
        cancel_on_leave=False,
    )


def test_every_field_is_taken_over() -> None:
    assert _parse(
        message_topic="chat",
        heartbeat_interval="1m30s",
        metadata={"user": 5, "name": "Ada"},
        cancel_on_leave=True,
    ) == RelayHeader(
        target_pid=PID(TARGET),
        message_topic="chat",
        heartbeat_interval=90.0,
        metadata={"user": 5, "name": "Ada"},
        cancel_on_leave=True,
    )


def test_a_target_without_node_part_is_on_this_node() -> None:
    assert _parse(target_pid="{app:processes|1}").target_pid == "{local@app:processes|1}"


@pytest.mark.parametrize("field", ["heartbeat_interval", "metadata"])
def test_null_means_that_there_is_none(field: str) -> None:
    assert _parse(**{field: None}) == _parse()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "truncated"),
        (b"null", "Expected `object`"),
        (b"[]", "Expected `object`"),
        (b'"{local@host|1}"', "Expected `object`"),
        (b"{}", "target_pid"),
        (b"{local@app:processes|1}", "malformed"),
        (b'{"target_pid": "{local@host|1}"} and more', "trailing"),
        (b'{"target_pid": "{local@host|\xff}"}', "utf-8"),
    ],
)
def test_what_is_no_such_json_object_is_refused_with_the_reason(text: bytes, reason: str) -> None:
    with pytest.raises(RelayRefused, match=f"X-WS-Relay.*{re.escape(reason)}"):
        header.parse(text, "local")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_pid", None),
        ("target_pid", 5),
        ("target_pid", ""),
        ("target_pid", "room"),
        ("target_pid", "{local@host}"),
        ("message_topic", None),
        ("message_topic", 5),
        ("message_topic", ""),
        ("message_topic", "@join"),
        ("heartbeat_interval", 30),
        ("heartbeat_interval", ""),
        ("heartbeat_interval", "30"),
        ("heartbeat_interval", "0s"),
        ("heartbeat_interval", "9ms"),
        ("heartbeat_interval", "-30s"),
        ("metadata", []),
        ("metadata", "text"),
        ("cancel_on_leave", None),
        ("cancel_on_leave", 1),
        ("cancel_on_leave", "true"),
    ],
)
def test_a_wrong_field_is_refused_and_named(field: str, value: object) -> None:
    with pytest.raises(RelayRefused, match=f"X-WS-Relay.*{field}"):
        _parse(**{field: value})


def test_an_unknown_field_is_refused_and_named() -> None:
    with pytest.raises(RelayRefused, match="target_pdi"):
        _parse(target_pdi=TARGET)


def test_the_shortest_heartbeat_is_ten_milliseconds() -> None:
    assert _parse(heartbeat_interval="10ms").heartbeat_interval == pytest.approx(0.01)


def test_metadata_beyond_256_kilobytes_is_refused() -> None:
    _parse(metadata={"k": "x" * 262_000})
    with pytest.raises(RelayRefused, match=r"metadata has 300\d\d\d bytes .* at most 262144"):
        _parse(metadata={"k": "x" * 300_000})
    with pytest.raises(RelayRefused, match=r"metadata has 300\d\d\d bytes .* at most 262144"):
        header.write({"target_pid": TARGET, "metadata": {"k": "x" * 300_000}})


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_metadata_with_an_integer_beyond_64_bits_is_refused(number: int) -> None:
    with pytest.raises(RelayRefused, match="metadata"):
        _parse(metadata={"n": [number]})


@settings(deadline=None)
@given(_OBJECTS)
def test_any_metadata_that_is_accepted_can_be_sent_to_the_target(metadata: dict[str, Any]) -> None:
    accepted = _parse(metadata=metadata).metadata
    assert payload.decode(payload.encode(accepted)) == metadata


_ALMOST = st.fixed_dictionaries(
    {},
    optional={
        "target_pid": st.just(TARGET) | _JSON,
        "message_topic": st.text() | _JSON,
        "heartbeat_interval": st.sampled_from(["30s", "1m30s", "9ms", "1s 2s"]) | _JSON,
        "metadata": _OBJECTS | st.dictionaries(st.text(), st.integers()) | _JSON,
        "cancel_on_leave": st.booleans() | _JSON,
    },
).map(lambda given_: json.dumps(given_).encode())


@settings(deadline=None, max_examples=300)
@given(st.binary() | _ALMOST | st.tuples(_ALMOST, st.integers(0, 99)).map(lambda t: t[0][: t[1]]))
@example(b'{"target_pid": "{h|1}", "metadata": {"a":' + b"[" * 5000)
@example(b'{"target_pid": "{h|1}", "metadata": {"a": "\\ud800"}}')
@example(b'{"target_pid": "{h|1}", "metadata": {"a": 1e999}}')
def test_any_bytes_are_a_relay_or_refused_and_never_anything_else(text: bytes) -> None:
    try:
        relay = header.parse(text, "local")
    except RelayRefused as error:
        assert "X-WS-Relay" in str(error)  # noqa: PT017 - either way is right
        return
    if relay.target_pid is None:
        assert relay.spec is not None
    else:
        assert relay.target_pid.node is not None
    assert relay.message_topic
    assert not relay.message_topic.startswith("@")
    assert relay.heartbeat_interval is None or relay.heartbeat_interval >= 0.01


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {"target_pid": st.just(PID(TARGET))},
        optional={
            "message_topic": st.text(min_size=1).filter(lambda text: not text.startswith("@")),
            "heartbeat_interval": st.none() | st.sampled_from(["30s", "500ms"]),
            "metadata": st.none() | _OBJECTS,
            "cancel_on_leave": st.booleans(),
        },
    )
)
def test_what_is_written_is_visible_ascii_and_reads_back(fields: dict[str, Any]) -> None:
    text = header.write(fields)
    assert re.fullmatch(r"[ -~]+", text)
    relay = header.parse(text.encode("latin-1"), "local")
    interval = fields.get("heartbeat_interval")
    assert relay == RelayHeader(
        target_pid=fields["target_pid"],
        message_topic=fields.get("message_topic", "ws.message"),
        heartbeat_interval=None if interval is None else header.heartbeat(interval),
        metadata=fields.get("metadata"),
        cancel_on_leave=fields.get("cancel_on_leave", False),
    )


def _nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(depth):
        inner = {"a": inner}
    return inner


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_pid": None},
        {"target_pid": "room"},
        {"target_pid": TARGET, "message_topic": "@join"},
        {"target_pid": TARGET, "heartbeat_interval": 30},
        {"target_pid": TARGET, "metadata": {"a": b"bytes"}},
        {"target_pid": TARGET, "metadata": {"a": float("nan")}},
        {"target_pid": TARGET, "metadata": {"a": "\ud800"}},
        {"target_pid": TARGET, "metadata": {"a": 2**64}},
        {"target_pid": TARGET, "metadata": {"a": _nested(100_000)}},
        {"target_pid": TARGET, "other": 1},
    ],
    ids=[
        "nothing",
        "no target",
        "no pid",
        "reserved topic",
        "interval no text",
        "bytes",
        "nan",
        "surrogate",
        "big integer",
        "nested too deeply",
        "unknown field",
    ],
)
def test_what_would_not_be_read_is_not_written(fields: dict[str, Any]) -> None:
    with pytest.raises(RelayRefused, match="X-WS-Relay"):
        header.write(fields)


def test_metadata_that_holds_itself_is_not_written() -> None:
    ring: dict[str, Any] = {}
    ring["ring"] = ring
    with pytest.raises(RelayRefused, match="X-WS-Relay"):
        header.write({"target_pid": TARGET, "metadata": ring})


# What is to be started


def _parse_target(**fields: Any) -> RelayHeader:
    return header.parse(json.dumps({"target": "app:room", **fields}).encode(), "local")


def test_a_target_without_a_name_lives_for_its_connection() -> None:
    assert _parse_target() == RelayHeader(spec=TargetSpec(target="app:room"), cancel_on_leave=True)
    assert _parse_target(cancel_on_leave=True) == _parse_target()


def test_a_target_with_a_name_lives_on_or_ends_some_time_after_its_last_client() -> None:
    spec = TargetSpec(target="app:room", name="blue")
    assert _parse_target(name="blue", cancel_on_leave=False) == RelayHeader(spec=spec)
    ends = _parse_target(name="blue", end_when_empty="1m30s").spec
    assert ends == TargetSpec(target="app:room", name="blue", end_when_empty=90.0)
    at_once = _parse_target(name="blue", end_when_empty="0s").spec
    assert at_once is not None
    assert at_once.end_when_empty == 0.0


def test_a_target_has_a_host_and_arguments() -> None:
    args = ["text", 1, 1.5, None, True, [1, [2]], {"a": {"b": []}}]
    spec = _parse_target(host="app:processes", args=args, message_topic="chat").spec
    assert spec == TargetSpec(target="app:room", host="app:processes", args=tuple(args))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"target_pid": TARGET, "target": "app:room"},
            f"it has target_pid '{TARGET}' and target 'app:room', and must have one of them",
        ),
        ({}, "it has neither target_pid (the PID of a process) nor target (what to start"),
        (
            {"target": "app:room", "name": "blue", "cancel_on_leave": True},
            "cancel_on_leave is true and the name is 'blue': others may be in that process; write",
        ),
        (
            {"target": "app:room", "cancel_on_leave": False},
            "cancel_on_leave is false and there is no name: nobody else could find the process",
        ),
        (
            {"target": "app:room", "end_when_empty": "30s"},
            "end_when_empty is '30s' and there is no name: without a name the process ends with",
        ),
        *(
            (
                {"target_pid": TARGET, field: value},
                f"it has {field} and target_pid '{TARGET}': a process that exists takes none",
            )
            for field, value in (
                ("name", "blue"),
                ("host", "app:processes"),
                ("args", []),
                ("end_when_empty", "30s"),
            )
        ),
        ({"target": "app:room", "name": ""}, "'' is not a name"),
        ({"target": "app:room", "host": ""}, "host is empty"),
        (
            {"target": "app:room", "name": "blue", "end_when_empty": "soon"},
            "end_when_empty: 'soon' is not a duration; write it like '30s'",
        ),
        ({"target": "app:room", "args": ["x" * header.MOST_METADATA]}, "args has 262"),
        ({"target": "app:room", "args": [2**64]}, "args"),
        ({"target": "app:room", "args": {}}, "args"),
    ],
)
def test_what_is_wrong_with_a_target_is_told_with_what_is_right(
    fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(RelayRefused) as refused:
        header.parse(json.dumps(fields).encode(), "local")
    assert str(refused.value).startswith("X-WS-Relay: ")
    assert told in str(refused.value)
