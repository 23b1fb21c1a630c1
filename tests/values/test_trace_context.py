"""Trace contexts: what is one, what is left of a long one, and how it travels."""

from __future__ import annotations

import copy
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrelay import PID
from wsrelay.values.trace_context import TRACED, TracedPID, parse, put, split
from wsrelay.wire import payload

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
DATA = payload.encode({"a": [1, "b"]})


@pytest.mark.parametrize("parent", [PARENT, f"00-{TRACE}-{SPAN}-00", f"\t{PARENT} "])
def test_a_right_traceparent_is_the_context(parent: str) -> None:
    assert parse(parent) == parent.strip()


def test_a_traceparent_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert parse(f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like") == PARENT


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "garbage",
        PARENT.upper(),
        PARENT[:-1],
        f"{PARENT}-more",
        f"{PARENT}x",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"{PARENT},{PARENT}",
        f"{PARENT}\n",
        f"00-{TRACE}-{SPAN}-0\N{ARABIC-INDIC DIGIT ONE}",
        f"cc-{TRACE}-{SPAN}-01-{'x' * 10_000}",
    ],
)
def test_a_malformed_traceparent_is_no_context_whatever_the_state(parent: str) -> None:
    assert parse(parent, "vendor=1") == ""


def test_the_state_goes_along_and_empty_entries_do_not() -> None:
    assert parse(PARENT, "a=1 ,, tenant@b=x y=z,") == f"{PARENT} a=1,tenant@b=x y=z"


@pytest.mark.parametrize("state", ["no value", "=1", "UPPER=1", "a=\N{EURO SIGN}", "a=1,b", "a=\n"])
def test_a_malformed_state_is_left_out(state: str) -> None:
    assert parse(PARENT, state) == PARENT


def test_of_a_long_state_the_longest_entries_go_first_and_then_the_last() -> None:
    entries = [f"k{number}={'v' * 90}" for number in range(7)]
    state = ",".join([entries[0], f"long={'v' * 130}", *entries[1:]])
    assert parse(PARENT, state) == f"{PARENT} {','.join(entries[:5])}"
    assert parse(PARENT, ",".join(f"k{number}=" for number in range(33))) == PARENT


def test_a_huge_state_takes_no_more_than_512_characters() -> None:
    assert parse(PARENT, f"a={'v' * 60_000}") == PARENT
    state = ",".join(f"k{number}={'v' * 120}" for number in range(32))
    assert len(parse(PARENT, state)) <= len(PARENT) + 1 + 512


@pytest.mark.parametrize("trace", [PARENT, f"{PARENT} a=1,b=2"])
@pytest.mark.parametrize("data", [DATA, b""])
def test_a_context_in_front_comes_off_again(trace: str, data: bytes) -> None:
    assert split(put(data, trace)) == (trace, data)
    context, rest = split(memoryview(put(data, trace)))
    assert (context, bytes(rest)) == (trace, data)


def test_without_a_context_the_bytes_are_the_same_object() -> None:
    assert put(DATA, "") is DATA
    assert split(DATA)[1] is DATA


def test_what_has_a_context_in_front_is_one_extension_and_then_the_data() -> None:
    head = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"x" * 300))
    assert head[:1] == TRACED
    assert split(head + DATA) == ("", DATA), "it is no context, and the data is what it was"


@given(st.binary(max_size=700))
def test_whatever_comes_in_front_no_wrong_context_comes_off(data: bytes) -> None:
    for given_ in (data, TRACED + data, put(DATA, PARENT)[: len(data)] + data):
        trace, rest = split(given_)
        assert given_.endswith(rest)
        assert trace == "" or parse(*trace.split(" ", 1)) == trace


def test_a_payload_that_is_data_never_begins_as_a_context_does() -> None:
    """As no value but an extension does, and an extension is no data."""
    with pytest.raises(ValueError, match="extension 1 is not data"):
        payload.decode(put(b"", PARENT))


def test_a_sender_with_a_context_is_a_plain_pid_to_everybody_else() -> None:
    sender = TracedPID.of("{local@processes|1}", PARENT)
    plain = PID("{local@processes|1}")
    assert sender == plain
    assert hash(sender) == hash(plain)
    for same in (copy.copy(sender), pickle.loads(pickle.dumps(sender))):  # noqa: S301 - our own
        assert type(same) is PID
        assert same == plain
