"""A link brings all frames, in order and each once, whatever the bus loses, doubles or reorders.

Tests with a parameter `links` get a module of links with small sizes. Each of the mutations at the
end breaks one line of that module, and at least one of these tests must notice.
"""

from __future__ import annotations

import functools
import inspect
import math
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from two_links import (
    ITEM,
    LARGEST,
    PUBLISH,
    SMALL,
    WINDOW,
    TwoLinks,
    all_fates,
    any_history,
    connected,
    machine,
)

from wsrelay.cluster import link as real
from wsrelay.cluster.link import Link
from wsrelay.errors import PayloadError, WireError
from wsrelay.values import sizes

ACK, NAK, PROBE, GREETING, FRAMES, PIECE = range(6)


@pytest.fixture
def links() -> Any:
    return SMALL


# Whatever happens


def test_whatever_becomes_of_the_first_publishes_all_frames_arrive_once(links: Any) -> None:
    all_fates(links, 5)


def test_any_history_ends_with_all_frames_arrived_once(links: Any) -> None:
    for seed in range(150):
        any_history(links, seed)


WHO = st.integers(0, 1)


class History(RuleBasedStateMachine):
    """What may happen to two links, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.two = TwoLinks()

    @rule(who=WHO, sizes=st.lists(st.integers(0, LARGEST), max_size=5))
    def send(self, who: int, sizes: list[int]) -> None:
        for size in sizes:
            self.two.send(who, size)

    @rule(who=WHO)
    def flush(self, who: int) -> None:
        self.two.flush(who)

    @rule(who=WHO, at=st.sampled_from((0, 0, 0, 1, 2)), again=st.booleans())
    def arrive(self, who: int, at: int, again: bool) -> None:
        self.two.arrive(who, at, again=again)

    @rule(who=WHO)
    def all_arrive(self, who: int) -> None:
        while self.two.ends[who].way:
            self.two.arrive(who)

    @rule(who=WHO, at=st.integers(0, 3))
    def lose(self, who: int, at: int) -> None:
        self.two.lose(who, at)

    @rule(seconds=st.sampled_from((0.0, 0.004, 0.01, 0.1, 0.2, 0.3)))
    def wait(self, seconds: float) -> None:
        self.two.wait(seconds)

    @precondition(lambda self: any(end.connected for end in self.two.ends))
    @rule(who=WHO, lost=st.integers(0, 5))
    def cut(self, who: int, lost: int) -> None:
        self.two.cut(who, lost)

    @rule(who=WHO)
    def connect(self, who: int) -> None:
        self.two.connect(who)

    def teardown(self) -> None:
        self.two.settle()


def test_any_history_that_hypothesis_finds_ends_with_all_frames_arrived_once() -> None:
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        ),
    )


# Out


def test_the_frames_of_one_turn_are_one_publish(links: Any) -> None:
    two = connected(links)
    for _ in range(5):
        two.send(0, 3)
    two.wait(0.0)
    assert two.taken_from(0) == ["FRAMES"]
    assert two.is_quiet() is False
    two.settle()
    assert two.ends[0].link.statistics().resent == 0


def test_a_large_frame_goes_in_pieces_and_nothing_comes_between_them(links: Any) -> None:
    two = connected(links)
    for size in (3, LARGEST, 3, 3):
        two.send(0, size)
    two.settle()
    kinds = two.taken_from(0)
    pieces = math.ceil(LARGEST / (PUBLISH - 21))
    assert kinds == ["FRAMES", *["PIECE"] * pieces, "FRAMES"]


def test_beyond_the_window_frames_wait_and_a_sender_is_told(links: Any) -> None:
    two = connected(links)
    link = two.ends[0].link
    told = []
    for _ in range(20):
        two.send(0, PUBLISH - 21)
        two.flush(0)
        told.append(link.full)
    assert told == [False] * 9 + [True] * 11
    assert len(two.taken_from(0)) == WINDOW // (PUBLISH + ITEM)
    assert not link.busy
    assert link.statistics().unacknowledged <= WINDOW
    assert link.statistics().backlog == link.backlog > 0
    two.settle()
    assert link.backlog == link.statistics().unacknowledged == 0


def test_a_smaller_window_counts_from_the_next_publish_on(links: Any) -> None:
    two = connected(links)
    link = two.ends[0].link
    for _ in range(20):
        two.send(0, PUBLISH - 21)
    link.window = PUBLISH + ITEM
    two.flush(0)
    assert two.taken_from(0) == ["FRAMES"]
    two.settle()


def test_nothing_is_published_nor_due_while_it_is_not_connected(links: Any) -> None:
    two = connected(links)
    link = two.ends[0].link
    two.cut(0, 0)
    two.send(0, 3)
    two.send(1, 3)
    two.wait(5.0)
    assert link.due() is None
    assert two.taken_from(0) == []
    two.settle()


def test_what_was_lost_comes_at_once_after_a_reconnect_and_nothing_else_does(links: Any) -> None:
    two = connected(links)
    for _ in range(3):
        two.send(0, 3)
        two.flush(0)
    two.arrive(0)
    two.cut(0, 2)
    two.taken_from(0)
    two.taken_from(1)
    two.connect(0)
    two.settle(0.05)
    assert two.taken_from(0) == ["GREETING", "FRAMES", "FRAMES"]
    assert two.taken_from(1) == ["NAK", "ACK"]
    assert two.ends[0].link.statistics().resent == 2 * (17 + 4 + 3)


def test_what_a_node_has_missed_comes_at_once_after_its_reconnect(links: Any) -> None:
    two = connected(links)
    two.cut(1, 0)
    for _ in range(3):
        two.send(0, 3)
        two.flush(0)
        two.arrive(0)  # at nobody
    two.taken_from(0)
    two.taken_from(1)
    two.connect(1)
    two.settle(0.05)
    assert two.taken_from(1) == ["GREETING", "NAK", "ACK"]
    assert two.taken_from(0) == ["PROBE", *["FRAMES"] * 3]


def test_a_gap_that_was_asked_for_is_asked_for_again_after_a_reconnect(links: Any) -> None:
    two = connected(links)
    for _ in range(2):
        two.send(0, 3)
        two.flush(0)
    two.lose(0)
    two.arrive(0)
    two.wait(0.0)
    two.cut(1, 1)
    two.connect(1)
    two.settle(0.05)


def test_a_greeting_may_be_lost_with_all_that_was_under_way(links: Any) -> None:
    two = connected(links)
    two.send(0, 3)
    two.flush(0)
    two.cut(0, 1)
    two.connect(0)
    two.lose(0)
    two.settle()


def test_a_reconnect_after_which_all_is_there_repeats_nothing(links: Any) -> None:
    two = connected(links)
    two.send(0, 3)
    two.flush(0)
    two.cut(0, 0)
    two.connect(0)
    two.settle(0.05)
    assert two.ends[0].link.statistics().resent == 0


def test_what_was_published_to_a_node_that_was_not_there_comes_when_it_is(links: Any) -> None:
    two = TwoLinks(links)
    two.connect(0)
    for _ in range(3):
        two.send(0, 3)
        two.flush(0)
    while two.ends[0].way:
        two.arrive(0)  # at nobody
    two.connect(1)
    two.settle(0.05)


def test_when_the_end_is_lost_the_other_node_is_asked_after_a_moment(links: Any) -> None:
    two = connected(links)
    two.send(0, 3)
    two.wait(0.0)
    two.taken_from(0)
    two.lose(0)
    two.wait(0.25)
    assert two.taken_from(0) == []
    two.wait(0.1)
    assert two.taken_from(0) == ["PROBE"]
    two.arrive(0)
    two.wait(0.0)
    assert two.taken_from(1) == ["NAK"]
    two.settle(0.05)


def test_however_many_are_lost_at_the_end_one_question_brings_them_all(links: Any) -> None:
    two = connected(links)
    for _ in range(5):
        two.send(0, 3)
        two.flush(0)
    while two.ends[0].way:
        two.lose(0)
    two.wait(0.3)
    two.settle(0.05)
    assert two.ends[0].link.statistics().resent == 5 * (17 + 4 + 3)


def test_a_question_whose_answer_is_lost_is_asked_again(links: Any) -> None:
    two = connected(links)
    two.send(0, 3)
    two.wait(0.0)
    two.taken_from(0)
    for _ in range(3):
        two.wait(0.3)
        two.arrive(0)
        two.ends[1].way.clear()
        two.ends[0].way.clear()
    assert two.taken_from(0).count("PROBE") == 3
    two.settle()


def test_a_stale_acknowledgement_changes_nothing(links: Any) -> None:
    two = connected(links)
    for _ in range(2):
        two.send(0, 3)
        two.settle()
    two.send(0, 3)
    two.flush(0)
    link = two.ends[0].link
    for publish in (ack(0), ack(1), ack(0, NAK)):
        link.received(publish, two.now)
    assert link.statistics().unacknowledged == 17 + 4 + 3 + ITEM
    assert link.flush(two.now) == []
    two.settle()


# In


def test_an_acknowledgement_waits_ten_milliseconds_for_others(links: Any) -> None:
    two = connected(links)
    two.ends[1].link.window *= 10
    for _ in range(3):
        assert two.taken_from(1) == []
        two.send(0, 3)
        two.flush(0)
        two.arrive(0)
        two.wait(0.004)
    assert two.taken_from(1) == ["ACK"]
    two.settle()


def test_an_eighth_of_the_window_is_acknowledged_at_once(links: Any) -> None:
    two = connected(links)
    two.send(0, PUBLISH - 21)
    two.flush(0)
    two.arrive(0)
    two.wait(0.0)
    assert two.taken_from(1) == ["ACK"]
    two.settle()


def test_an_acknowledgement_travels_with_an_answer(links: Any) -> None:
    two = connected(links)
    two.send(0, 3)
    two.flush(0)
    two.arrive(0)
    two.send(1, 3)
    two.flush(1)
    two.wait(0.05)
    assert two.taken_from(1) == ["FRAMES"]
    two.arrive(1)
    assert two.ends[0].link.idle
    two.settle()


def test_what_comes_a_second_time_is_acknowledged_a_second_time(links: Any) -> None:
    two = connected(links)
    two.send(0, 3)
    two.flush(0)
    two.arrive(0, again=True)
    two.wait(0.05)
    two.arrive(0)
    two.wait(0.05)
    assert two.taken_from(1) == ["ACK", "ACK"]
    two.settle()


def test_a_gap_is_asked_for_once_and_again_after_a_fifth_of_a_second(links: Any) -> None:
    two = connected(links)
    for _ in range(5):
        two.send(0, 3)
        two.flush(0)
    two.lose(0)
    for _ in range(3):
        two.arrive(0)
        two.wait(0.0)
    assert two.taken_from(1) == ["NAK"]
    two.wait(0.2)
    two.arrive(0)
    two.wait(0.0)
    assert two.taken_from(1) == ["NAK"]
    two.settle()


def test_another_gap_is_asked_for_at_once(links: Any) -> None:
    two = connected(links)
    for _ in range(4):
        two.send(0, 3)
        two.flush(0)
    for _ in range(2):
        two.lose(0)
        two.arrive(0)
        two.wait(0.0)
        two.arrive(1)  # the request; all that is missing is published again
        two.ends[0].way.clear()
        two.wait(0.0)
        two.arrive(0)
    assert two.taken_from(1) == ["NAK", "NAK"]
    assert two.now == 0.2  # that of `connected`
    two.settle()


def test_small_frames_are_no_views_of_the_publish_that_they_came_in(links: Any) -> None:
    link = links.Link()
    small, large = link.received(frames(0, b"1" * 5, b"2" * 32), 0.0)
    assert (type(small), type(large)) == (bytes, memoryview)


# Garbage

TAKEN = 3
SENT = 2


def ack(total: int, kind: int = ACK) -> bytes:
    return struct.pack(">BQ", kind, total)


def frames(number: int, *content: bytes, told: int = 0) -> bytes:
    head = struct.pack(">BQQ", FRAMES, told, number)
    return head + b"".join(len(one).to_bytes(4, "big") + one for one in content)


def piece(number: int, size: int, part: bytes, told: int = 0) -> bytes:
    return struct.pack(">BQQI", PIECE, told, number, size) + part


def in_use(links: Any) -> Any:
    """A link that has published twice and taken three; with a frame of which a piece has come."""
    link = links.Link()
    link.connected()
    for _ in range(SENT):
        link.send(b"frame")
        link.flush(0.0)
    for number in range(TAKEN - 1):
        link.received(frames(number, b"frame"), 0.0)
    link.received(piece(TAKEN - 1, 100, b"x" * 43), 0.0)
    return link


def state(link: Any) -> dict[str, Any]:
    return {
        name: value.copy() if hasattr(value, "copy") else value
        for name, value in vars(link).items()
    }


GARBAGE: dict[str, bytes] = {
    "nothing": b"",
    "a byte": b"\x00",
    "half a head": ack(0)[:-1],
    "an unknown kind": struct.pack(">BQQ", 6, 0, TAKEN) + b"rest",
    "no kind of ours": b"\xff" * 40,
    "an acknowledgement with more behind it": ack(0) + b"\x00",
    "a request with more behind it": ack(0, NAK) + b"\x00",
    "a question without a number": ack(0, PROBE),
    "a question with more behind it": struct.pack(">BQQ", PROBE, 0, TAKEN) + b"\x00",
    "a greeting with more behind it": struct.pack(">BQQ", GREETING, 0, TAKEN) + b"\x00",
    "frames without a number": ack(0, FRAMES),
    "an acknowledgement of what was never published": ack(SENT + 1),
    "a request for what was never published": ack(SENT + 1, NAK),
    "frames that acknowledge what was never published": piece(TAKEN, 100, b"x" * 40, told=SENT + 1),
    "a number that nothing can have now": piece(2**63, 100, b"x"),
    "a question for what cannot be": struct.pack(">BQQ", PROBE, 0, 2**63),
    "a frame between pieces": frames(TAKEN, b"frame"),
    "a piece of another frame": piece(TAKEN, 101, b"x" * 20),
    "an empty piece": piece(TAKEN, 100, b""),
    "a piece without its size": piece(TAKEN, 100, b"")[:-1],
    "more than the frame has": piece(TAKEN, 100, b"x" * 43)[:-1] + b"x" * 20,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_told_and_changes_nothing(links: Any, garbage: bytes) -> None:
    link = in_use(links)
    before = state(link)
    with pytest.raises(WireError):
        link.received(garbage, 0.5)
    assert state(link) == before
    link.received(piece(TAKEN, 100, b"x" * 40), 0.5)
    assert link.received(piece(TAKEN + 1, 100, b"x" * 17), 0.5) == [b"x" * 100]


AT_THE_BEGINNING: dict[str, bytes] = {
    "a publish without a frame": frames(0),
    "a kind that there is not": b"\x06" + frames(0, b"frame")[1:],
    "less than a length": frames(0, b"frame") + b"\x00\x00\x00",
    "a length beyond the publish": frames(0, b"frame")[:-1],
    "a huge length": frames(0, b"frame") + b"\xff" * 4,
    "a frame that is too large": piece(0, LARGEST + 1, b"x"),
    "a huge frame": piece(0, 2**32 - 1, b"x"),
    "a frame of nothing": piece(0, 0, b"x"),
    "a publish that is too large": frames(0, b"x" * PUBLISH),
}


@pytest.mark.parametrize("garbage", AT_THE_BEGINNING.values(), ids=AT_THE_BEGINNING)
def test_garbage_at_the_beginning_is_told_and_changes_nothing(links: Any, garbage: bytes) -> None:
    link = links.Link()
    before = state(link)
    with pytest.raises(WireError):
        link.received(garbage, 0.0)
    assert state(link) == before
    assert link.received(frames(0, b"frame"), 0.0) == [b"frame"]


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60)
    | st.builds(
        lambda kind, told, number, rest: struct.pack(">BQQ", kind, told, number) + rest,
        st.integers(0, 6),
        st.integers(0, SENT + 1),
        st.integers(0, TAKEN + 3) | st.integers(0, 2**64 - 1),
        st.binary(max_size=30),
    )
)
def test_any_bytes_are_a_publish_or_told(data: bytes) -> None:
    link = in_use(SMALL)
    before = state(link)
    try:
        link.received(data, 0.5)
    except WireError:
        assert state(link) == before
    link.flush(0.5)
    assert len(link._partial) <= LARGEST


# In full size


def test_a_frame_of_the_largest_size_arrives_and_a_larger_one_is_refused() -> None:
    one, other = Link(), Link()
    one.connected()
    other.connected()
    frame = bytes(real.LARGEST)
    one.send(frame)
    now, got = 0.0, []
    while not one.idle:
        for publish in one.flush(now):
            assert len(publish) <= real.PUBLISH
            got += other.received(publish, now)
        for publish in other.flush(now):
            one.received(publish, now)
        now += 0.001
    assert got == [frame]
    assert one.statistics().resent == 0
    with pytest.raises(PayloadError, match="bytes are more than nodes send at once"):
        one.send(frame + b"x")
    assert one.idle


def test_the_size_of_a_frame_that_has_not_come_takes_no_memory() -> None:
    link = Link()
    tracemalloc.start()
    try:
        link.received(piece(0, real.LARGEST, b"x" * 100_000), 0.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1024 * 1024


def test_a_sender_who_cannot_wait_is_refused_beyond_sixteen_megabytes() -> None:
    link = Link()
    for _ in range(16):
        link.send(bytes(1024 * 1024 - sizes.ITEM))
    assert link.full
    assert not link.busy
    link.send(b"")
    assert link.busy


def test_a_window_full_of_the_smallest_publishes_is_possible() -> None:
    one, other = Link(), Link()
    one.connected()
    other.connected()
    publishes = one.flush(0.0)
    other.flush(0.0)
    while True:
        one.send(b"")
        more = one.flush(0.0)
        if not more:
            break
        publishes += more
    other.received(publishes[-1], 0.0)
    assert other.flush(0.0) == [ack(0, NAK)]


# Each rule broken


MUTATIONS: dict[str, tuple[str, str]] = {
    "what comes twice is taken twice": ("elif ahead == 0:", "elif ahead <= 0:"),
    "what comes too early is taken": ("elif ahead == 0:", "elif ahead >= 0:"),
    "a gap is not noticed": (
        "+ _NAK_EVERY:\n            self._nak = True",
        "+ _NAK_EVERY:\n            pass",
    ),
    "a gap is asked for each time": ("if self._nak_for != self._taken or", "if True or"),
    "a gap is asked for once only": ("now >= self._nak_at + _NAK_EVERY", "False"),
    "one NAK for all gaps": ("self._nak_for != self._taken or ", ""),
    "a NAK is an acknowledgement only": ("            self._again = told", "            pass"),
    "a NAK for what has arrived since counts": (
        "if kind == _NAK and told >= self._acknowledged:",
        "if kind == _NAK:",
    ),
    "nobody is asked": ("_PROBE_EVERY: Final = 0.3", "_PROBE_EVERY: Final = math.inf"),
    "a question is not answered": ("        else:\n            self._ack_at = now\n", ""),
    "a question is asked once": (
        "self._published))\n            self._probe_at = now + _PROBE_EVERY",
        "self._published))\n            self._probe_at = math.inf",
    ),
    "progress does not count": (
        "        self._probe_at = now + _PROBE_EVERY if self._under_way else math.inf\n\n",
        "\n",
    ),
    "only the first publish is watched": (
        "        self._probe_at = now + _PROBE_EVERY if self._under_way else math.inf\n\n",
        "        self._probe_at = math.inf\n\n",
    ),
    "a reconnect is not told": ("self._connected = self._greets = True", "self._connected = True"),
    "a greeting is no question": ("if kind in (_PROBE, _GREETING):\n", "if kind == _PROBE:\n"),
    "a greeting asks for no question": ("            self._probe_at = now\n", "            pass\n"),
    "after a greeting nobody is asked": (
        "            self._probe_at = now + _PROBE_EVERY if self._under_way else math.inf\n",
        "",
    ),
    "a gap is remembered beyond a reconnect": ("        self._nak_for = -1\n\n", "\n"),
    "it publishes while disconnected": (
        "        if not self._connected:\n            return []",
        "",
    ),
    "it is due while disconnected": (
        "        if not self._connected:\n            return None",
        "",
    ),
    "there is no window": ("return self._in_flight + PUBLISH + ITEM <= self.window", "return True"),
    "the window holds one publish more": ("self._in_flight + PUBLISH + ITEM", "self._in_flight"),
    "the window does not open": (
        "self._in_flight -= len(self._under_way.popleft()) + ITEM",
        "self._under_way.popleft()",
    ),
    "others come between pieces": (
        "            self._cut += len(part)\n",
        "            self._cut += len(part)\n            waiting.rotate(1)\n",
    ),
    "a frame for each publish": ("                if not waiting:\n", "                if True:\n"),
    "publishes are too large": ("room = PUBLISH - _numbered.size", "room = PUBLISH"),
    "pieces are too large": ("self._cut + PUBLISH - _piece.size", "self._cut + PUBLISH"),
    "pieces leave the backlog as it is": ("            self.backlog -= len(part)\n", ""),
    "frames leave the backlog as it is": ("                self.backlog -= size + ITEM\n", ""),
    "every publish is acknowledged": ("self._untold >= self.window // _EIGHTH", "True"),
    "an eighth is not acknowledged": ("self._untold >= self.window // _EIGHTH", "False"),
    "an acknowledgement is postponed": (
        "        self._ack_at = min(self._ack_at, soon)",
        "        self._ack_at = soon",
    ),
    "nothing is acknowledged": ("if now >= self._ack_at:", "if False:"),
    "acknowledgements never travel with others": (
        "append(self._next_publish())\n            self._told()",
        "append(self._next_publish())",
    ),
    "what comes twice is not acknowledged": (
        "self._ack_at = min(self._ack_at, now + _ACK_DELAY)",
        "pass",
    ),
    "views for all": ("if 2 * size > end else publish", "if True else publish"),
    "what is resent is not counted": ("self._resent += sum(map(len, again))", "pass"),
    "any acknowledgement is believed": ("if told > self._published:", "if False:"),
    "any number is believed": ("if number > self._taken + _MOST_UNDER_WAY:", "if False:"),
    "any size of a publish": ("if not _head.size <= size <= PUBLISH:", "if size < _head.size:"),
    "any length of an acknowledgement": ("if size != _head.size:", "if False:"),
    "any length of a question": ("(is_empty and size != _numbered.size)", "False"),
    "any kind": ("if kind > _PIECE or ", "if "),
    "frames between pieces": (
        "        if self._size:\n            raise",
        "        if False:\n            raise",
    ),
    "lengths beyond the publish": ("if size > end - at:", "if False:"),
    "less than a length": ("if end - at < _length.size:", "if False:"),
    "no frame at all": ("        if not frames:", "        if False:"),
    "empty pieces": ("        if not part:", "        if False:"),
    "pieces of other frames": ("if self._size and size != self._size:", "if False:"),
    "frames of any size": (
        "if size > LARGEST:\n            raise WireError",
        "if 0:\n            raise WireError",
    ),
    "pieces of any length": ("if len(self._partial) + len(part) > size:", "if False:"),
    "a frame's size is kept": (
        "frame, self._partial, self._size = self._partial, bytearray(), 0",
        "frame, self._partial = self._partial, bytearray()",
    ),
}


def checks() -> Iterator[Callable[[Any], None]]:
    """All tests above of a module of links, each with all its cases."""
    for name, test in list(globals().items()):
        if not name.startswith("test_"):
            continue
        parameters = list(inspect.signature(test).parameters)
        if parameters == ["links"]:
            yield test
        elif parameters == ["links", "garbage"]:
            (mark,) = test.pytestmark
            for garbage in mark.args[1]:
                yield functools.partial(test, garbage=garbage)


@pytest.mark.parametrize(("old", "new"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_link_with_one_rule_less_is_noticed(old: str, new: str) -> None:
    links = machine(old, new)
    for check in sorted(checks(), key=lambda check: check in SLOW):
        try:
            check(links)
        except Exception:  # noqa: BLE001 - a failed assertion, or whatever the mistake leads to
            return
        except pytest.fail.Exception:
            return
    pytest.fail("no test has noticed")


SLOW = (
    test_whatever_becomes_of_the_first_publishes_all_frames_arrive_once,
    test_any_history_ends_with_all_frames_arrived_once,
)
