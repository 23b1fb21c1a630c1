from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Raw

from wsrelay import wire
from wsrelay.errors import WireError
from wsrelay.values.pid import PID

Reader = wire.FrameReader[Any]

READERS: dict[str, tuple[Callable[[], Reader], Any]] = {
    "to a worker": (wire.to_worker, wire.ToWorker),
    "from a worker": (wire.from_worker, wire.FromWorker),
    "to a template": (wire.to_template, wire.ToTemplate),
    "from a template": (wire.from_template, wire.FromTemplate),
}

_TEXTS = st.text(max_size=12)
_NUMBERS = st.integers(0, 2**40)
_DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | _TEXTS | st.binary(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=5,
)
_RAWS = _DATA.map(msgspec.msgpack.encode).map(Raw)
_SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    str: _TEXTS,
    int: _NUMBERS,
    float: st.floats(0, 1e9),
    bool: st.booleans(),
    bytes: st.binary(max_size=20),
    type(None): st.none(),
    Any: _DATA,
    Raw: _RAWS,
}


def _tuples(*items: st.SearchStrategy[Any], max_size: int) -> st.SearchStrategy[Any]:
    """Tuples of one kind of items, `tuple[str, ...]`, or of a kind for each, `tuple[str, int]`."""
    return st.tuples(*items) if items[1:] else st.lists(*items, max_size=max_size).map(tuple)


def _values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, so that a frame added one day is tried without being named here."""
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    arguments = [one for one in get_args(hint) if one is not ...]
    collections: dict[Any, Any] = {list: st.lists, tuple: _tuples, dict: st.dictionaries}
    if (collection := collections.get(get_origin(hint))) is not None:
        some: st.SearchStrategy[Any] = collection(*map(_values, arguments), max_size=3)
        return some
    if get_origin(hint) is Literal:
        return st.sampled_from(arguments)
    if arguments:
        return st.one_of(*map(_values, arguments))
    if issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    hints = get_type_hints(hint)
    return st.builds(hint, *(_values(hints[name]) for name in hint.__struct_fields__))


FRAMES = {direction: _values(kinds) for direction, (_, kinds) in READERS.items()}

DIRECTIONS = st.sampled_from(sorted(READERS))


def _comparable(frame: Any) -> Any:
    """A frame as plain data; `Raw` has no equality of its own."""
    if isinstance(frame, Raw):
        return bytes(frame)
    if isinstance(frame, msgspec.Struct):
        fields = (getattr(frame, name) for name in frame.__struct_fields__)
        return type(frame), [_comparable(value) for value in fields]
    return frame


def _read(reader: Reader, chunks: Iterable[bytes]) -> list[tuple[Any, int]]:
    return [(_comparable(frame), size) for chunk in chunks for frame, size in reader.feed(chunk)]


@st.composite
def _streams(draw: st.DrawFn) -> tuple[str, list[Any], list[int]]:
    """A direction, frames for it, and where the stream of their bytes is cut."""
    direction = draw(DIRECTIONS)
    frames = draw(st.lists(FRAMES[direction], max_size=6))
    length = sum(len(wire.pack(frame)) for frame in frames)
    cuts = draw(st.lists(st.integers(0, length), max_size=12))
    return direction, frames, sorted(cuts)


def _chunks(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *cuts, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@settings(deadline=None, max_examples=200)
@given(_streams())
def test_any_cut_of_any_frames_gives_the_same_frames(
    stream: tuple[str, list[Any], list[int]],
) -> None:
    direction, frames, cuts = stream
    packed = [wire.pack(frame) for frame in frames]
    reader = READERS[direction][0]()
    expected = [(_comparable(frame), len(data)) for frame, data in zip(frames, packed, strict=True)]
    assert _read(reader, _chunks(b"".join(packed), cuts)) == expected
    assert reader.partial == 0


@settings(deadline=None, max_examples=30)
@given(_streams())
def test_frames_that_come_byte_by_byte_are_the_same_frames(
    stream: tuple[str, list[Any], list[int]],
) -> None:
    direction, frames, _ = stream
    data = b"".join(wire.pack(frame) for frame in frames)
    read = _read(READERS[direction][0](), (bytes([byte]) for byte in data))
    assert [frame for frame, _ in read] == [_comparable(frame) for frame in frames]


@settings(deadline=None, max_examples=50)
@given(_streams(), st.data())
def test_a_partial_frame_is_counted_and_never_given(
    stream: tuple[str, list[Any], list[int]], data: st.DataObject
) -> None:
    direction, frames, _ = stream
    last = wire.pack(data.draw(FRAMES[direction]))
    kept = data.draw(st.integers(0, len(last) - 1))
    whole = b"".join(wire.pack(frame) for frame in frames)
    reader = READERS[direction][0]()
    assert len(_read(reader, [whole + last[:kept]])) == len(frames)
    assert reader.partial == kept
    assert len(_read(reader, [last[kept:]])) == 1
    assert reader.partial == 0


@st.composite
def _garbage(draw: st.DrawFn) -> bytes:
    """Bodies of many kinds behind honest and dishonest lengths."""
    bodies = st.one_of(
        st.binary(max_size=40),
        _DATA.map(msgspec.msgpack.encode),
        st.lists(_DATA, max_size=6).map(msgspec.msgpack.encode),
        # A tag that exists with fields that do not fit it.
        st.tuples(st.integers(0, 20), st.lists(_DATA, max_size=7)).map(
            lambda given_: msgspec.msgpack.encode([given_[0], *given_[1]])
        ),
        # A frame of any direction with a few bytes turned.
        st.one_of(*FRAMES.values())
        .flatmap(
            lambda frame: st.tuples(st.just(wire.pack(frame)[4:]), st.integers(0), st.binary())
        )
        .map(lambda given_: _turned(*given_)),
    )
    parts = [
        len(body).to_bytes(4, "big") + body if draw(st.booleans()) else body
        for body in draw(st.lists(bodies, max_size=4))
    ]
    return b"".join(parts)


def _turned(body: bytes, at: int, other: bytes) -> bytes:
    place = at % len(body)
    return body[:place] + other + body[place + len(other) :]


@settings(deadline=None, max_examples=500)
@given(DIRECTIONS, _garbage(), st.lists(st.integers(0, 60), max_size=4))
@example("to a worker", b"\x00\x00\x00\x06\x94\x07\x01\x81\x80\x00", [])  # a dict as a key
@example("to a worker", b"\x00\x00\x00\x09\x97\x00\xa0\xa0\xdd\xff\xff\xff\xff", [])  # 2**32 hosts
@example("from a worker", b"\x00\x00\x00\x00", [])
@example("to a worker", b"\x00\x00\x20\x03\x93\x07\x01" + b"\x91" * 8192, [])  # nested without end
def test_garbage_gives_frames_or_a_wire_error_and_nothing_else(
    direction: str, data: bytes, cuts: list[int]
) -> None:
    make, kinds = READERS[direction]
    reader = make()
    try:
        for chunk in _chunks(data, sorted(min(cut, len(data)) for cut in cuts)):
            for frame, _ in reader.feed(chunk):
                assert isinstance(frame, kinds)
    except WireError:
        pass


@settings(deadline=None, max_examples=100)
@given(DIRECTIONS, st.data())
def test_a_frame_with_a_field_too_many_or_too_few_is_no_frame(
    direction: str, data: st.DataObject
) -> None:
    frame = data.draw(FRAMES[direction])
    tag, *fields = msgspec.msgpack.decode(wire.pack(frame)[4:])
    required = sum(field.required for field in msgspec.structs.fields(frame))
    wrong = [[tag, *fields, None]]
    wrong += [[tag, *fields[: required - 1]]] if required else []
    for items in wrong:
        body = msgspec.msgpack.encode(items)
        with pytest.raises(WireError, match="are not a frame"):
            _read(READERS[direction][0](), [len(body).to_bytes(4, "big") + body])


@pytest.mark.parametrize("direction", sorted(READERS))
def test_every_tag_of_a_direction_belongs_to_one_frame(direction: str) -> None:
    kinds = get_args(READERS[direction][1])
    assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("direction", sorted(READERS))
def test_an_unknown_tag_is_no_frame(direction: str) -> None:
    body = msgspec.msgpack.encode([99])
    with pytest.raises(WireError, match="are not a frame"):
        _read(READERS[direction][0](), [len(body).to_bytes(4, "big") + body])


def test_a_length_above_the_limit_is_refused_before_its_bytes_are_there() -> None:
    reader: Reader = wire.FrameReader(wire.FromWorker, limit=100)
    with pytest.raises(WireError, match="101 bytes are not a frame: at most 100"):
        _read(reader, [(101).to_bytes(4, "big")])


def test_a_frame_of_exactly_the_limit_is_read() -> None:
    frame = wire.TerminateFrame("x" * 30)
    size = len(wire.pack(frame))
    reader: Reader = wire.FrameReader(wire.FromWorker, limit=size - 4)
    assert _read(reader, [wire.pack(frame)]) == [(_comparable(frame), size)]


def test_frames_before_the_garbage_are_given() -> None:
    reader = wire.from_worker()
    taken = wire.pack(wire.AckFrame(5))
    assert reader.feed(taken + b"\x00\x00\x00\x01\xc1" + taken) == [(wire.AckFrame(5), len(taken))]
    assert reader.partial
    with pytest.raises(WireError, match="1 bytes are not a frame"):
        reader.feed(b"")


def test_frames_before_a_length_above_the_limit_are_given() -> None:
    taken = wire.pack(wire.AckFrame(5))
    reader: Reader = wire.FrameReader(wire.FromWorker, limit=100)
    assert reader.feed(taken + (101).to_bytes(4, "big")) == [(wire.AckFrame(5), len(taken))]
    with pytest.raises(WireError, match="101 bytes are not a frame"):
        reader.feed(b"")


@pytest.mark.parametrize("read", [1, 4096, 300_000])
def test_the_rest_of_a_large_frame_can_be_read_straight_to_where_it_belongs(read: int) -> None:
    frame, begun = wire.SendFrame("to", "topic", random.Random(1).randbytes(300_000)), 290_000  # noqa: S311 - no secret
    data = wire.pack(frame)
    reader = wire.from_worker()
    assert reader.feed(wire.pack(wire.AckFrame(5)) + data[:begun]) == [(wire.AckFrame(5), 7)]
    while reader.partial:
        space, done = reader.space(), reader.partial
        size = min(read, len(space))
        space[:size] = data[done : done + size]
        assert reader.missing == len(space) == len(data) - done
        frames = reader.feed(space[:size])
    assert frames == [(frame, len(data))]
    assert (reader.partial, reader.wanted, reader.missing) == (0, 0, 0)
    assert reader.feed(wire.pack(wire.AckFrame(6))) == [(wire.AckFrame(6), 7)]


@pytest.mark.parametrize(
    ("receivers", "stays"), [(["somebody"], True), (["x" * 100] * 2000, False)]
)
def test_the_payload_of_a_large_message_stays_in_its_frame_if_that_is_most_of_it(
    receivers: list[str], *, stays: bool
) -> None:
    frame = wire.SendFrame(receivers, "topic", bytes(100_000))
    reader = wire.from_worker()
    read = _read_in_place(reader, wire.pack(frame))
    assert read == frame
    assert isinstance(read.payload, memoryview) == stays


def test_other_large_frames_are_decoded_like_small_ones() -> None:
    frame = wire.BroadcastFrame("group", "topic", bytes(100_000))
    assert _read_in_place(wire.from_worker(), wire.pack(frame)) == frame
    done = wire.DoneFrame(bytes(100_000), None, 1, [])
    assert _read_in_place(wire.from_worker(), wire.pack(done)) == done


def _read_in_place(reader: Reader, data: bytes) -> Any:
    assert reader.feed(data[:10]) == []
    space = reader.space()
    space[:] = data[10:]
    [(frame, size)] = reader.feed(space)
    assert size == len(data)
    return frame


def test_a_large_frame_that_was_read_to_where_it_belongs_is_checked_like_others() -> None:
    data = wire.pack(wire.SendFrame(["x" * 1000] * 1200, "topic", b""))
    reader = wire.from_worker()
    reader.feed(data[:10])
    space = reader.space()
    space[:] = data[10:]
    with pytest.raises(WireError, match=r"besides the payload, at most 1048576 are allowed"):
        reader.feed(space)


@settings(deadline=None, max_examples=200)
@given(DIRECTIONS, st.data())
def test_a_frame_that_comes_alone_is_the_one_that_feed_gives(
    direction: str, data: st.DataObject
) -> None:
    frame = data.draw(FRAMES[direction])
    packed, reader = wire.pack(frame), READERS[direction][0]()
    assert _comparable(reader.one(packed)) == _comparable(frame)
    assert reader.partial == 0
    for other in (b"", packed[:-1], packed + b"\0", packed + packed, packed[:4]):
        assert reader.one(other) is None
    reader.feed(packed[:-1])
    assert reader.one(packed) is None, "the beginning of another is held"
    assert _read(reader, [packed[-1:]]) == [(_comparable(frame), len(packed))]


def test_a_frame_above_the_limit_is_left_to_feed_although_it_comes_alone() -> None:
    packed = wire.pack(wire.TerminateFrame("x" * 30))
    reader: Reader = wire.FrameReader(wire.FromWorker, limit=len(packed) - 5)
    assert reader.one(packed) is None
    with pytest.raises(WireError, match="are allowed"):
        reader.feed(packed)


def test_what_is_no_frame_is_left_to_feed_although_it_comes_alone() -> None:
    reader = wire.from_worker()
    large = wire.pack(wire.SendFrame("to", "topic", bytes(64 * 1024)))
    for garbage in (b"\0\0\0\1\xc1", b"\0\0\0\2\x91\x63", large):
        assert reader.one(garbage) is None
    with pytest.raises(WireError, match="1 bytes are not a frame"):
        reader.feed(b"\0\0\0\1\xc1")


def test_a_pid_in_a_frame_travels_as_its_text() -> None:
    pid = PID("{local@host|1}")
    frame = wire.CancelFrame(pid, "why")
    assert wire.pack(frame) == wire.pack(wire.CancelFrame(str(pid), "why"))


def test_payloads_pass_through_untouched() -> None:
    odd = b"\xd9\x01a"  # the text "a" in a longer form than any encoder writes
    (frame, _), *_ = wire.to_worker().feed(wire.pack(wire.DeliverFrame("t", "s", odd)))
    assert isinstance(frame, wire.DeliverFrame)
    assert bytes(frame.payload) == odd
