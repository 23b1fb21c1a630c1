"""The short ways in C and in Python: both do the same, and leave the rest to the longer ways."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsrelay import wire
from wsrelay.values import awaited
from wsrelay.values.client import Client
from wsrelay.values.message import Relayed
from wsrelay.values.pid import PID
from wsrelay.wire import payload
from wsrelay.wire.pipe_pair import Duplex
from wsrelay.worker import short_way
from wsrelay.worker.short_way import PyShortWay

METADATA = {"user": "ann"}
CLIENT = Client("{local@gateway|k3f9.0-1}", METADATA)
KINDS = [PyShortWay]
with contextlib.suppress(ImportError):
    from wsrelay.worker._short_way import ShortWay as CShortWay  # type: ignore[import-not-found]

    KINDS.append(CShortWay)


class Ends:
    """A short way, and the node's end of its pipe."""

    def __init__(self, kind: type[PyShortWay]) -> None:
        self.node, self.worker = Duplex.pair()
        os.set_blocking(self.node.reading, False)
        os.set_blocking(self.worker.writing, False)
        # A subclass, since that in C has no room for what only the longer ways use.
        way = type("Way", (kind,), {})(self.worker.reading, self.worker.writing)
        self.way: PyShortWay = way
        way.lock = contextlib.nullcontext()
        way.reads = iter(lambda: os.read(self.worker.reading, short_way.CHUNK), None)
        way.line, way.arrived, way.items = deque(), deque(), deque()
        way.sleepers, way.waiters, way.listeners = set(), set(), {}
        way.clients = {str(CLIENT): (CLIENT, METADATA)}
        way.wake = self.wake
        way.due = 1 << 40
        way.is_simple = True
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1

    def tell(self, *data: bytes) -> None:
        """Write to the worker."""
        self.node.write_all(b"".join(data))

    def said(self) -> bytes:
        """Read what the worker has written."""
        try:
            return os.read(self.node.reading, 1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.node.close()
        self.worker.close()


@contextlib.contextmanager
def opened(kind: type[PyShortWay]) -> Iterator[Ends]:
    with contextlib.closing(Ends(kind)) as ends:
        yield ends


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with opened(request.param) as ends:
        yield ends


def relayed(data: str | bytes, topic: str = "ws.message", client: str = CLIENT) -> bytes:
    kind = "text" if isinstance(data, str) else "binary"
    return wire.pack(wire.RelayFrame(topic, str(client), {"type": kind, "data": data}))


def message(data: str | bytes, topic: str = "ws.message") -> Relayed:
    kind = "text" if isinstance(data, str) else "binary"
    content = {"type": kind, "data": data, "metadata": METADATA, "client_pid": CLIENT}
    return Relayed(topic, content, CLIENT)


@pytest.mark.skipif(
    bool(os.environ.get("WSRELAY_NO_EXTENSIONS")), reason="WSRELAY_NO_EXTENSIONS is set"
)
def test_the_short_ways_in_c_are_built_and_used() -> None:
    assert len(KINDS) == 2
    assert short_way.ShortWay is KINDS[1]


# From a client


@pytest.mark.parametrize("size", [0, 1, 31, 32, 255, 256, 4096, 65_000])
@pytest.mark.parametrize("letter", ["a", "é", b"\xff"])
def test_a_message_is_what_the_longer_way_makes_of_its_frame(
    ends: Ends, letter: str | bytes, size: int
) -> None:
    data = letter * (size // len(letter.encode() if isinstance(letter, str) else letter))
    ends.tell(frame := relayed(data))
    got = next(ends.way)
    assert got == message(data)
    assert type(got) is Relayed
    assert list(got.payload) == ["type", "data", "metadata", "client_pid"]
    assert got.client is CLIENT
    assert got.payload["metadata"] is METADATA
    assert (ends.way.received, ends.way.taken) == (1, len(frame))
    assert (ends.way.data, ends.way.in_read) == (b"", False)


def test_messages_that_come_together_are_given_in_order_and_a_part_of_one_is_left(
    ends: Ends,
) -> None:
    frames = [relayed("a"), relayed(b"b", "other"), relayed("c" * 1000)]
    ends.tell(*frames, frames[0][:-1])
    assert list(ends.way) == [message("a"), message(b"b", "other"), message("c" * 1000)]
    assert (ends.way.received, ends.way.taken) == (3, sum(map(len, frames)))
    assert ends.way.data[ends.way.at :] == frames[0][:-1]


LEFT = {
    "another frame": wire.pack(wire.DeliverFrame("topic", str(CLIENT), b"\xc0")),
    "metadata": wire.pack(wire.AttachFrame(str(CLIENT), msgspec.Raw(b"\xc0"))),
    "an unknown client": relayed("a", client="{local@gateway|k3f9.0-2}"),
    "a topic that has a channel": relayed("a", "listened"),
    "what is no frame": b"\0\0\0\1\xc1",
    "a length alone": b"\0\0\0\5",
    "a part of a length": b"\0\0\0",
    "text that is no UTF-8": relayed("aaaa").replace(b"aaaa", b"aa\xffa"),
    "a topic that is no UTF-8": relayed("a", "topic").replace(b"topic", b"top\xffc"),
    "bytes after the frame's content": b"\0\0\0\x3d" + relayed("a")[4:] + b"\xc0",
}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT)
def test_what_is_not_the_common_case_is_left_as_it_was_read(ends: Ends, left: bytes) -> None:
    ends.way.listeners["listened"] = None
    ends.tell(relayed("before"), left)
    assert list(ends.way) == [message("before")]
    assert list(ends.way) == []
    assert ends.way.data[ends.way.at :] == left
    assert (ends.way.received, ends.way.in_read) == (1, False)


HELD_UP: dict[str, Callable[[PyShortWay], Any]] = {
    "the longer way alone may take": lambda way: setattr(way, "is_simple", False),
    "a thread reads": lambda way: setattr(way, "in_read", True),
    "a frame has begun": lambda way: setattr(way, "has_begun", True),
    "something is not sorted": lambda way: way.arrived.append(None),
    "the inbox has something": lambda way: way.items.append(None),
    "an acknowledgement is due": lambda way: setattr(way, "due", 1),
}


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize("hold_up", HELD_UP.values(), ids=HELD_UP)
def test_nothing_is_taken_before_what_comes_first(
    ends: Ends, hold_up: Callable[[PyShortWay], Any], *, is_read: bool
) -> None:
    frame = relayed("a")
    if is_read:
        ends.way.data = frame
    hold_up(ends.way)
    ends.tell(frame)
    assert list(ends.way) == []
    assert (ends.way.received, ends.way.taken) == (0, 0)
    if is_read:
        assert (ends.way.data, ends.way.at) == (frame, 0)


def test_the_end_of_the_pipe_is_left_to_the_longer_way(ends: Ends) -> None:
    ends.node.close_writing()
    assert list(ends.way) == []
    assert (ends.way.data, ends.way.in_read) == (b"", False)


@pytest.mark.parametrize("those", ["sleepers", "waiters"])
def test_who_waits_is_woken_by_what_is_read(ends: Ends, those: str) -> None:
    getattr(ends.way, those).add(None)
    ends.tell(relayed("a"))
    next(ends.way, None)
    assert ends.woken == 1
    assert not ends.way.in_read


def test_who_waits_is_woken_though_a_signal_handler_raises_meanwhile(ends: Ends) -> None:
    def wake() -> None:
        ends.wake()
        if ends.woken == 1:
            raise ArithmeticError

    ends.way.wake = wake
    ends.way.sleepers.add(None)
    ends.tell(relayed("a"))
    with pytest.raises(ArithmeticError):
        next(ends.way)
    assert (ends.woken, ends.way.in_read) == (2, False)
    assert ends.way.data == relayed("a")


def test_a_message_that_comes_back_to_the_inbox_during_a_read_is_first(ends: Ends) -> None:
    def handle(*_: object) -> None:
        ends.way.items.append(None)
        ends.tell(relayed("a"))

    with handled(handle):
        assert list(ends.way) == []
    assert ends.way.data == relayed("a")


def test_a_read_that_finds_nothing_is_left_to_the_longer_way(ends: Ends) -> None:
    os.set_blocking(ends.worker.reading, False)
    assert list(ends.way) == []
    assert (ends.way.data, ends.way.in_read) == (b"", False)


def test_nothing_that_was_read_is_lost_when_there_is_no_memory(ends: Ends) -> None:
    if PyShortWay in type(ends.way).__mro__:
        pytest.skip("os.read of Python itself can lose what it has read then")
    testcapi = pytest.importorskip("_testcapi")
    frames = [relayed("one"), relayed("two" * 1000)]
    for count in range(1, 40):
        ends.tell(*frames)
        taken: list[Any] = [None]  # so that the test itself needs no memory
        failed = False
        testcapi.set_nomemory(count, count + 1)
        try:
            taken[0] = next(ends.way, None)
        except MemoryError:
            failed = True
        finally:
            testcapi.remove_mem_hooks()
        got = [each for each in taken if each is not None]
        while len(got) < 2:
            assert ends.way.data or unread(ends), f"lost at allocation {count}, failed: {failed}"
            got.append(next(ends.way))
        assert got == [message("one"), message("two" * 1000)]


def unread(ends: Ends) -> bool:
    """Whether anything lies in the pipe to the worker."""
    return bool(select.select([ends.worker.reading], [], [], 0)[0])


def test_a_signal_handler_that_raises_ends_the_wait_and_wakes_others(ends: Ends) -> None:
    def handle(*_: object) -> None:
        assert ends.way.in_read
        raise ArithmeticError

    with handled(handle), pytest.raises(ArithmeticError):
        next(ends.way)
    assert (ends.way.in_read, ends.woken) == (False, 1)
    ends.tell(relayed("a"))
    assert next(ends.way) == message("a")


def test_a_signal_handler_that_returns_does_not_end_the_wait(ends: Ends) -> None:
    with handled(lambda *_: ends.tell(relayed("a"))):
        assert next(ends.way) == message("a")


@contextlib.contextmanager
def handled(handler: Callable[..., None]) -> Iterator[None]:
    """Call the handler once, when the test waits."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


FRAMES = st.one_of(
    st.builds(relayed, st.text(max_size=40) | st.binary(max_size=40), st.sampled_from(["t", "u"])),
    st.sampled_from([*LEFT.values()]),
    st.binary(max_size=40),
)


@settings(deadline=None, max_examples=500)
@given(st.lists(FRAMES, max_size=4), st.binary(max_size=3), st.integers(min_value=0), st.data())
@example([b"\0\0\0\x0c\x94\x03\xdb\xff\xff\xff\xff"], b"", 0, None)
def test_of_any_bytes_the_one_in_c_makes_nothing_but_what_the_other_makes(
    frames: list[bytes], change: bytes, where: int, more: st.DataObject | None
) -> None:
    data = bytearray(b"".join(frames))
    if data and change:
        at = where % len(data)
        data[at : at + len(change)] = change
    due = 1 << 40 if more is None else more.draw(st.sampled_from([50, 100, 1 << 40]))
    seen = []
    for kind in KINDS:
        with opened(kind) as ends:
            ends.node.close_writing()
            ends.way.data, ends.way.due = bytes(data), due
            messages = list(ends.way)
            left = ends.way.data[ends.way.at :]
            assert ends.way.taken + len(left) == len(data)
            assert ends.way.received == len(messages)
            assert bytes(data).endswith(left)
            seen.append(messages)
    by_python, *by_c = seen
    assert all(messages == by_python[: len(messages)] for messages in by_c)


# To a client


@settings(deadline=None, max_examples=300)
@given(st.text() | st.binary())
@example("")
@example("é" * 16)
@example(b"x" * 255)
@example("x" * 256)
def test_what_is_sent_is_the_frame_of_the_longer_way(data: str | bytes) -> None:
    content = {"type": "text" if isinstance(data, str) else "binary", "data": data}
    for kind in KINDS:
        with opened(kind) as ends:
            assert ends.way.send_short(CLIENT, "ws.send", content) is True
            frame = wire.SendFrame(str(CLIENT), "ws.send", payload.encode(content))
            assert ends.said() == wire.pack(frame)


@pytest.mark.parametrize("kind", [PID, Client, awaited.Client])
def test_a_client_of_either_face_is_sent_to_as_its_pid_is(ends: Ends, kind: type[PID]) -> None:
    assert ends.way.send_short(kind(CLIENT), "ws.send", RIGHT) is True
    frame = wire.SendFrame(str(CLIENT), "ws.send", payload.encode(RIGHT))
    assert ends.said() == wire.pack(frame)


def test_only_what_the_pipe_takes_as_a_whole_is_sent(ends: Ends) -> None:
    for size in range(select.PIPE_BUF - 200, select.PIPE_BUF + 10):
        content = {"type": "binary", "data": bytes(size)}
        sent = ends.way.send_short(CLIENT, "ws.send", content)
        said = ends.said()
        assert bool(said) == sent
        assert len(said) <= select.PIPE_BUF
        assert sent or size > select.PIPE_BUF - 150


class Dict(dict[str, Any]):
    pass


class Text(str):
    __slots__ = ()


RIGHT = {"type": "text", "data": "a"}
NOT_SENT: dict[str, tuple[Any, Any, Any]] = {
    "to a name": ("name", "ws.send", RIGHT),
    "to many": ([CLIENT], "ws.send", RIGHT),
    "to nobody": (None, "ws.send", RIGHT),
    "of another topic": (CLIENT, "topic", RIGHT),
    "of no topic": (CLIENT, None, RIGHT),
    "with more": (CLIENT, "ws.send", {**RIGHT, "more": 1}),
    "with less": (CLIENT, "ws.send", {"type": "text"}),
    "with other keys": (CLIENT, "ws.send", {"type": "text", "date": "a"}),
    "with a number": (CLIENT, "ws.send", {"type": "text", "data": 1}),
    "with another kind of text": (CLIENT, "ws.send", {"type": "text", "data": Text("a")}),
    "with another kind of dict": (CLIENT, "ws.send", Dict(RIGHT)),
    "with surrogates": (CLIENT, "ws.send", {"type": "text", "data": "\ud800"}),
    "with surrogates as type": (CLIENT, "ws.send", {"type": "\ud800", "data": "a"}),
    "with nothing": (CLIENT, "ws.send", None),
    "too large": (CLIENT, "ws.send", {"type": "binary", "data": bytes(5000)}),
    "too long": (CLIENT, "ws.send", {"type": "text", "data": "é" * 3000}),
    "of too long a type": (CLIENT, "ws.send", {"type": "x" * 5000, "data": "a"}),
}


@pytest.mark.parametrize("arguments", NOT_SENT.values(), ids=NOT_SENT)
def test_what_is_not_common_is_not_sent(ends: Ends, arguments: tuple[Any, Any, Any]) -> None:
    assert ends.way.send_short(*arguments) is False
    assert ends.said() == b""


def test_a_key_whose_comparison_runs_code_does_no_harm(ends: Ends) -> None:
    content: dict[str, Any] = {}

    class Key(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            content["type"] = "binary"
            return str(self) == other

    content.update({"type": str(b"text", "ascii"), Key("data"): "a"})
    sent = ends.way.send_short(CLIENT, "ws.send", content)
    assert sent == bool(ends.said())
    assert not sent or PyShortWay in type(ends.way).__mro__


def test_nothing_is_sent_before_what_waits_in_line(ends: Ends) -> None:
    ends.way.line.append(None)
    assert ends.way.send_short(CLIENT, "ws.send", RIGHT) is False
    ends.way.line.clear()
    assert ends.way.send_short(CLIENT, "ws.send", RIGHT) is True


def test_a_full_pipe_is_left_to_the_longer_way(ends: Ends) -> None:
    count = 0
    while ends.way.send_short(CLIENT, "ws.send", RIGHT):
        count += 1
    reader = wire.from_worker()
    assert len(reader.feed(ends.said())) == count > 100
    assert not reader.partial


@pytest.mark.parametrize("kind", KINDS)
def test_both_note_what_was_taken_and_when(kind: type[PyShortWay]) -> None:
    with opened(kind) as ends:
        noted = memoryview(bytearray(16)).cast("q")
        ends.way.note_in(noted)
        before = time.monotonic_ns()
        ends.tell(*(relayed(f"{number}") for number in range(3)))
        assert [next(ends.way).payload["data"] for _ in range(2)] == ["0", "1"]
        assert noted[0] == 2
        late = 20_000_000  # of a coarse clock
        assert before - late <= noted[1] <= time.monotonic_ns()
