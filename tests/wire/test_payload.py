from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import math
import pathlib
import re
import types
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsrelay.errors import PayloadError
from wsrelay.values.pid import PID
from wsrelay.wire import payload


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)
    DAY = dt.date(2024, 2, 29)
    NOTHING = None


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: int


class Row(msgspec.Struct, frozen=True):
    a: Any
    b: Any = None


class Pair(NamedTuple):
    left: Any
    right: Any


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Ratio(float):
    pass


class Blob(bytes):
    pass


class Table(dict[Any, Any]):
    pass


class Items(list[Any]):
    pass


Case = tuple[Any, Any]
"""What is sent and what has to arrive."""


def _same(value: Any) -> Case:
    return value, value


def _aware(value: dt.datetime) -> Case:
    return value, value.astimezone(dt.UTC)


_ZONES = st.integers(-14 * 60, 14 * 60).map(lambda m: dt.timezone(dt.timedelta(minutes=m)))
_MOMENTS = st.datetimes(min_value=dt.datetime(2, 1, 1), max_value=dt.datetime(9998, 12, 31))  # noqa: DTZ001 - the zone comes on top

_KEYS: st.SearchStrategy[Case] = st.one_of(
    st.text().map(_same),
    st.integers(-(2**63), 2**64 - 1).map(_same),
    st.binary().map(_same),
    st.text().map(lambda text: (Text(text), text)),
)

_LEAVES: st.SearchStrategy[Case] = st.one_of(
    st.none().map(_same),
    st.booleans().map(_same),
    st.integers(-(2**63), 2**64 - 1).map(_same),
    st.floats(allow_nan=False).map(_same),
    st.text().map(_same),
    st.binary().map(_same),
    _MOMENTS.flatmap(lambda at: _ZONES.map(lambda zone: _aware(at.replace(tzinfo=zone)))),
    st.datetimes().map(lambda naive: (naive, naive.isoformat())),
    st.dates().map(lambda date: (date, date.isoformat())),
    st.uuids().map(lambda value: (value, str(value))),
    st.decimals(allow_nan=False).map(lambda value: (value, str(value))),
    st.sampled_from(
        [
            (Colour.RED, "red"),
            (Colour.PAIR, [1, 2]),
            (Colour.DAY, "2024-02-29"),
            (Colour.NOTHING, None),
            (Level.LOW, 1),
            (Word.YES, "yes"),
            (PID("{local@host|id}"), "{local@host|id}"),
            (Text("text"), "text"),
            (Number(7), 7),
            (Ratio(0.5), 0.5),
            (Blob(b"\xff"), b"\xff"),
        ]
    ),
)


def _dicts(items: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    def build(pairs: list[tuple[Case, Case]]) -> Case:
        given_ = {key[0]: value[0] for key, value in pairs}
        arrives = {key[1]: value[1] for key, value in pairs}
        return given_, arrives

    return st.lists(st.tuples(_KEYS, items), max_size=4).map(build)


def _holding(items: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    lists = st.lists(items, max_size=4)
    two = st.tuples(items, items)

    def sequence(kind: Callable[[list[Any]], Any]) -> st.SearchStrategy[Case]:
        return lists.map(lambda cases: (kind([c[0] for c in cases]), [c[1] for c in cases]))

    def record(kind: Callable[[Any, Any], Any], *names: str) -> st.SearchStrategy[Case]:
        def build(cases: tuple[Case, Case]) -> Case:
            one, other = cases
            arrives: Any = [one[1], other[1]]
            if names:
                arrives = dict(zip(names, arrives, strict=True))
            return kind(one[0], other[0]), arrives

        return two.map(build)

    return st.one_of(
        sequence(list),
        sequence(tuple),
        sequence(Items),
        record(Pair),
        record(Point, "x", "y"),
        record(Row, "a", "b"),
        _dicts(items),
        _dicts(items).map(lambda case: (Table(case[0]), case[1])),
    )


PAYLOADS = st.recursive(_LEAVES, _holding, max_leaves=12)


@settings(deadline=None, max_examples=300)
@given(PAYLOADS)
def test_every_payload_arrives_as_the_table_of_types_says(case: Case) -> None:
    given_, arrives = case
    received = payload.decode(payload.encode(given_))
    assert received == arrives
    assert _types(received) == _types(arrives)


def _types(value: Any) -> Any:
    """The exact types, because 1 == True == 1.0 and a PID equals its text."""
    if isinstance(value, dict):
        return [(_types(key), _types(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [_types(item) for item in value]
    return type(value)


@settings(deadline=None)
@given(st.sets(st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary()))
def test_a_set_arrives_as_a_list_of_its_members(members: set[Any]) -> None:
    for given_ in (members, frozenset(members)):
        received = payload.decode(payload.encode(given_))
        assert isinstance(received, list)
        assert len(received) == len(members)
        assert set(received) == members


def test_not_a_number_and_the_infinities_arrive() -> None:
    received = payload.decode(payload.encode([math.nan, math.inf, -math.inf]))
    assert math.isnan(received[0])
    assert received[1:] == [math.inf, -math.inf]


def test_an_aware_moment_arrives_in_utc() -> None:
    zone = dt.timezone(dt.timedelta(hours=-5, minutes=-30))
    received = payload.decode(payload.encode(dt.datetime(2024, 2, 29, 22, 0, 0, 123456, zone)))
    assert received == dt.datetime(2024, 3, 1, 3, 30, 0, 123456, dt.UTC)
    assert received.tzinfo is dt.UTC


def test_a_payload_of_dataclasses_inside_structs_arrives_as_dicts() -> None:
    given_ = Row(Point(uuid.UUID(int=1), decimal.Decimal("1.10")), (Colour.RED,))
    assert payload.decode(payload.encode(given_)) == {
        "a": {"x": "00000000-0000-0000-0000-000000000001", "y": "1.10"},
        "b": ["red"],
    }


class Stranger:
    pass


_NO_DATA = [
    Stranger(),
    object(),
    Stranger,
    len,
    1j,
    range(3),
    iter(()),
    ValueError("text"),
    pathlib.PurePath("file"),
    re.compile("pattern"),
    types.MappingProxyType({}),
    collections.deque(),
    msgspec.UNSET,
]


@pytest.mark.parametrize("stranger", _NO_DATA, ids=lambda value: type(value).__name__)
def test_what_is_no_data_is_refused_and_its_type_is_named(stranger: Any) -> None:
    for given_ in (stranger, [stranger], {"key": stranger}):
        with pytest.raises(PayloadError, match=re.escape(type(stranger).__qualname__)):
            payload.encode(given_)


@pytest.mark.parametrize(
    "stranger",
    [
        msgspec.msgpack.Ext(5, b"bytes"),
        msgspec.Raw(b"\xc1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_type_that_only_the_encoder_knows_is_refused_like_any_other(stranger: Any) -> None:
    for given_ in (stranger, [stranger], {"key": stranger}):
        with pytest.raises(PayloadError, match=re.escape(type(stranger).__qualname__)):
            payload.encode(given_)


def _place(build: Callable[[Any], Any]) -> str:
    with pytest.raises(PayloadError) as caught:
        payload.encode(build(Stranger()))
    place, _, problem = str(caught.value).partition(": ")
    assert "Stranger is not data" in problem
    return place


def test_the_error_says_where_the_offender_sits() -> None:
    assert _place(lambda it: it) == "payload"
    assert _place(lambda it: [1, it]) == "payload[1]"
    assert _place(lambda it: (1, {"a": [it]})) == "payload[1]['a'][0]"
    assert _place(lambda it: {5: {"b": it}}) == "payload[5]['b']"
    assert _place(lambda it: [Point(1, it)]) == "payload[0].y"
    assert _place(lambda it: {"row": Row(it)}) == "payload['row'].a"
    assert _place(lambda it: Pair(0, it)) == "payload[1]"
    assert _place(lambda it: {it}) == "payload[0]"


def test_the_error_names_a_key_that_is_no_data() -> None:
    with pytest.raises(PayloadError, match=r"payload\['a'\], key .*Stranger is not data"):
        payload.encode({"a": {Stranger(): 1}})


def test_the_first_of_several_offenders_is_named() -> None:
    with pytest.raises(PayloadError, match=r"^payload\['b'\]\[0\]: "):
        payload.encode({"a": 1, "b": [Stranger()], "c": Stranger()})


@settings(deadline=None, max_examples=50)
@given(
    st.integers(min_value=2**64, max_value=2**200) | st.integers(-(2**200), -(2**63) - 1),
    st.sampled_from([int, Number]),
)
def test_an_integer_beyond_64_bits_is_refused(number: int, kind: type[int]) -> None:
    with pytest.raises(PayloadError, match=r"payload\['n'\]: .*does not fit into 64 bits"):
        payload.encode({"n": kind(number)})


def test_text_with_surrogates_is_refused() -> None:
    with pytest.raises(PayloadError, match=r"payload\[0\]: .*surrogates"):
        payload.encode(["\ud800"])
    with pytest.raises(PayloadError, match=r"payload, key .*surrogates"):
        payload.encode({"\ud800": 1})


def test_a_payload_inside_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append([ring])
    with pytest.raises(PayloadError, match="inside itself"):
        payload.encode(ring)


def test_a_payload_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(PayloadError, match="nested too deeply"):
        payload.encode(deep)


def test_a_payload_error_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        payload.encode(Stranger())


@pytest.mark.parametrize(
    "key", [Frozen(1), Row(1), (Frozen(1),)], ids=["dataclass", "struct", "inside a tuple"]
)
def test_a_key_that_would_arrive_as_a_dict_is_refused_at_the_sender(key: Any) -> None:
    with pytest.raises(PayloadError, match="payload, key "):
        payload.encode({key: 1})


_LATEST = dt.datetime(9999, 12, 31, 23, tzinfo=dt.timezone(dt.timedelta(hours=-12)))
_EARLIEST = dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=12)))


@pytest.mark.parametrize("moment", [_LATEST, _EARLIEST], ids=["latest", "earliest"])
def test_a_moment_that_has_no_form_in_utc_is_refused(moment: dt.datetime) -> None:
    with pytest.raises(PayloadError, match=r"^payload\[0\]: "):
        payload.encode([moment])


def _odd_dicts(items: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    """Dicts with keys of any kind that Python can hash."""
    keys = st.recursive(
        _LEAVES.map(lambda case: case[0]) | st.builds(Frozen, st.integers(0, 9)),
        lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=2),
        max_leaves=4,
    )
    values = items.map(lambda case: case[0])
    return st.dictionaries(keys, values, max_size=3).map(lambda given_: (given_, None))


@settings(deadline=None, max_examples=200)
@given(st.recursive(_LEAVES, lambda inner: _holding(inner) | _odd_dicts(inner), max_leaves=6))
def test_whatever_the_sender_may_send_the_receiver_can_read(case: Case) -> None:
    try:
        data = payload.encode(case[0])
    except PayloadError:
        return
    payload.decode(data)
