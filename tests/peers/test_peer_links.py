"""The links of nodes over a bus: everything arrives, in turns, and strangers leave nothing."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
import time
import types
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from doubles import BusDouble, Network, virtually
from support import TIMEOUT
from two_links import replaced

from wsrelay.cluster import link as machine
from wsrelay.cluster.frames import PeerFrame, PeerSendFrame
from wsrelay.cluster.framing import pack
from wsrelay.cluster.link import PUBLISH, WINDOW
from wsrelay.cluster.peer import Peer
from wsrelay.errors import PayloadError, WireError
from wsrelay.peers import link as driver
from wsrelay.peers import links
from wsrelay.peers.link import PeerLink
from wsrelay.peers.links import PeerLinks
from wsrelay.values.sizes import ITEM

PREFIX = "wsr.test"
MB = 1024 * 1024


def message(number: int, size: int = 0) -> PeerSendFrame:
    return PeerSendFrame(
        ["{b@app:processes|0-1}"], "{a@app:processes|0-1}", str(number), bytes(size)
    )


def number_of(frame: PeerFrame) -> int:
    assert isinstance(frame, PeerSendFrame)
    return int(frame.topic)


class Side:
    """One node, with links to the others, what has come from each, and how they ended."""

    def __init__(
        self, network: Network, name: str, incarnation: str = "1", clock: Any = lambda: 0.0
    ) -> None:
        self.name = name
        self.me = Peer(name, incarnation)
        self.bus = BusDouble(network, name)
        self.links = PeerLinks(self.bus, PREFIX, self.me, clock=clock)
        self.got: dict[str, list[int]] = {}
        self.broken: list[str] = []
        self.publishes: list[bytes] = []
        self._publish = self.bus.publish
        self.bus.publish = self._noted  # type: ignore[method-assign]

    def _noted(self, subject: str, data: bytes) -> None:
        assert self.bus.connected
        self.publishes.append(data)
        self._publish(subject, data)

    def open(self, other: Side, receive: Any = None) -> PeerLink:
        got = self.got.setdefault(other.name, [])

        def note(frame: PeerFrame) -> None:
            got.append(number_of(frame))

        return self.links.open(other.me, receive or note, self.broken.append)


class Steps:
    """A clock on which everything takes a tenth of a millisecond: five frames or six are a turn."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0001
        return self.now


class Iterations:
    """How often something was noted in each iteration of the loop."""

    def __init__(self) -> None:
        self._counts = [0]
        selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
        select = selector.select

        def counting(timeout: float | None) -> Any:
            self._counts.append(0)
            return select(timeout)

        selector.select = counting

    def note(self) -> None:
        self._counts[-1] += 1

    def most(self) -> int:
        return max(self._counts)


async def pair(clock: Any = lambda: 0.0) -> tuple[Side, Side]:
    network = Network()
    network.delay = lambda _: 0.0001
    one, other = Side(network, "a", clock=clock), Side(network, "b", clock=clock)
    await one.links.start()
    await other.links.start()
    return one, other


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait in virtual time; the condition must hold within so many seconds of it."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < end, "not within that time"
        await asyncio.sleep(0.001)


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test in virtual time, after which nothing may be left that waits."""

    def run() -> None:
        virtually(test())

    run.__name__, run.__module__ = test.__name__, test.__module__
    return run


# From one to another


@virtual
async def test_what_a_turn_sends_is_one_publish_and_arrives_in_order() -> None:
    one, other = await pair()
    link = one.open(other)
    other.open(one)
    await asyncio.sleep(0.5)
    del one.publishes[:], other.publishes[:]
    for number in range(100):
        link.send(message(number))
    await until(lambda: link.idle)
    assert other.got["a"] == list(range(100))
    assert len(one.publishes) == len(other.publishes) == 1


@virtual
async def test_a_question_and_its_answer_are_two_publishes_and_an_acknowledgement() -> None:
    one, other = await pair()
    link = one.open(other)

    def answer(frame: PeerFrame) -> None:
        back.send(frame)

    back = other.open(one, answer)
    await asyncio.sleep(0.5)
    del one.publishes[:], other.publishes[:]
    link.send(message(7))
    await asyncio.sleep(0.5)
    assert one.got["b"] == [7]
    assert (len(one.publishes), len(other.publishes)) == (2, 1)
    assert link.idle
    assert back.idle


@virtual
async def test_a_frame_that_was_packed_for_several_nodes_arrives() -> None:
    one, other = await pair()
    link = one.open(other)
    other.open(one)
    link.send(pack(message(1)))
    await until(lambda: other.got["a"] == [1])


@virtual
async def test_a_large_message_arrives_and_one_that_is_too_large_is_refused() -> None:
    one, other = await pair()
    sizes = []

    def note(frame: PeerFrame) -> None:
        assert isinstance(frame, PeerSendFrame)
        sizes.append(len(frame.payload))

    link = one.open(other)
    other.open(one, note)
    for size in (1, 3 * MB, 1):
        link.send(message(0, size))
    with pytest.raises(PayloadError):
        link.send(message(0, 66 * MB))
    await until(lambda: link.idle)
    assert sizes == [1, 3 * MB, 1]


@virtual
async def test_what_is_sent_before_the_other_node_knows_of_it_arrives_at_once_when_it_does() -> (
    None
):
    one, other = await pair()
    link = one.open(other)
    for number in range(3):
        link.send(message(number))
        await asyncio.sleep(0.01)
    assert other.links.dropped > 0
    other.open(one)
    await asyncio.sleep(0.01)
    assert other.got["a"] == [0, 1, 2]


@virtual
async def test_nothing_is_lost_nor_doubled_by_a_connection_that_breaks() -> None:
    one, other = await pair()
    network = one.bus._network
    links = one.open(other), other.open(one)
    for number in range(2000):
        for link in links:
            link.send(message(number))
        if number % 500 == 100:
            network.cut(random.Random(number).choice(("a", "b", None)))  # noqa: S311 - no secret
        if number % 500 == 300:
            network.heal()
            network.heal("a")
            network.heal("b")
        await asyncio.sleep(0.001)
    await until(lambda: all(link.idle for link in links))
    assert one.got["b"] == other.got["a"] == list(range(2000))
    assert all(link._size == 0 for link in links)


@virtual
async def test_nothing_is_lost_by_a_cut_that_nobody_is_told_of() -> None:
    one, other = await pair()
    network = one.bus._network
    links = one.open(other), other.open(one)
    for number in range(1000):
        for link in links:
            link.send(message(number))
        if number == 100:
            network.cut(told=False)
        if number == 700:
            network.heal()
        await asyncio.sleep(0.001)
    await until(lambda: all(link.idle for link in links), 1.0)
    assert one.got["b"] == other.got["a"] == list(range(1000))


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_cut_between_three_nodes_all_that_was_sent_arrives(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret

    async def run() -> None:
        network = Network()
        network.delay = lambda _: chance.choice((0.0, 0.0001, 0.01))
        sides = [Side(network, name, clock=Steps()) for name in "abc"]
        for side in sides:
            await side.links.start()
        links = {
            (one.name, other.name): one.open(other)
            for one, other in itertools.permutations(sides, 2)
        }
        sent: dict[tuple[str, str], int] = dict.fromkeys(links, 0)
        for _ in range(300):
            pair = chance.choice(sorted(links))
            for _ in range(chance.choice((1, 1, 10))):
                links[pair].send(message(sent[pair], chance.choice((0, 0, 100, 20_000))))
                sent[pair] += 1
            if chance.random() < 0.05:
                network.cut(chance.choice(("a", "b", "c", None)), told=chance.random() < 0.7)
            if chance.random() < 0.1:
                for node in ("a", "b", "c", None):
                    network.heal(node)
            await asyncio.sleep(chance.choice((0.0, 0.001, 0.05)))
        for node in ("a", "b", "c", None):
            network.heal(node)
        await until(lambda: all(link.idle for link in links.values()))
        for one, other in itertools.permutations(sides, 2):
            assert other.got[one.name] == list(range(sent[one.name, other.name]))

    virtually(run())


@pytest.mark.anyio
async def test_on_the_loop_that_nodes_run_on_lost_publishes_are_soon_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "_PROBE_EVERY", 0.02)
    # For uvloop that is now, and what it returns for a timer is none.
    monkeypatch.setattr(machine, "_ACK_DELAY", 0.0001)
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    network = Network()
    one, other = (Side(network, name, clock=time.perf_counter) for name in "ab")
    await one.links.start()
    await other.links.start()
    links = one.open(other), other.open(one)
    for number in range(60):
        if number % 10 == 5:
            network.cut(told=False)
        for link in links:
            link.send(message(number))
        await asyncio.sleep(0.0005)
        if number % 10 == 9:
            network.heal()
    await until(lambda: all(link.idle for link in links), TIMEOUT)
    # What a node has received it may be about to handle.
    await until(lambda: min(len(one.got["b"]), len(other.got["a"])) >= 60, TIMEOUT)
    assert one.got["b"] == other.got["a"] == list(range(60))
    assert told == []


# Room


@virtual
async def test_a_sender_waits_for_room_while_nothing_is_carried() -> None:
    one, other = await pair()
    link = one.open(other)
    other.open(one)
    await asyncio.sleep(0.1)
    one.bus._network.cut()
    await asyncio.sleep(0.1)
    told: list[str] = []
    link.when_room("at once", lambda: told.append("at once"))
    assert told == ["at once"]
    count = 0
    while not link.full:
        link.send(message(count, 1000))
        count += 1
    assert PUBLISH <= link.backlog < PUBLISH + 2000
    assert not link.busy
    link.when_room("later", lambda: told.append("later"))
    link.when_room("forgotten", lambda: told.append("forgotten"))
    link.forget("forgotten")
    await asyncio.sleep(1.0)
    assert told == ["at once"]
    one.bus._network.heal()
    await until(lambda: link.idle)
    assert told == ["at once", "later"]
    assert other.got["a"] == list(range(count))


@virtual
async def test_beyond_sixteen_megabytes_others_are_to_be_refused() -> None:
    one, other = await pair()
    link = one.open(other)
    one.bus._network.cut()
    for number in range(18):
        link.send(message(number, MB))
    assert link.busy
    assert link.statistics().backlog == link.backlog > 16 * MB


@virtual
async def test_who_waits_for_room_goes_on_when_the_link_is_closed() -> None:
    one, other = await pair()
    link = one.open(other)
    one.bus._network.cut()
    for number in range(2):
        link.send(message(number, PUBLISH))
    told: list[int] = []
    link.when_room("one", lambda: told.append(1))
    assert told == []
    one.links.close(Peer("b", "1"))
    assert told == [1]
    link.send(message(3))
    link.when_room("one", lambda: told.append(2))
    assert told == [1, 2]
    assert link.backlog == 0


@virtual
async def test_a_node_that_handles_slowly_makes_the_sender_wait() -> None:
    one, other = await pair(Steps())
    link = one.open(other)
    waiting: list[int] = []
    full: list[bool] = []

    def note(frame: PeerFrame) -> None:
        waiting.append(back._size)
        full.append(link.full)
        other.got["a"].append(number_of(frame))

    back = other.open(one, note)
    await asyncio.sleep(0.1)
    count = 0
    while not link.full:
        link.send(message(count, 10_000))
        count += 1
    assert count * 10_000 > WINDOW
    assert link.full
    await until(lambda: link.idle)
    assert WINDOW / 2 < max(waiting) <= WINDOW
    assert full.index(False) > 1
    assert other.got["a"] == list(range(count))


@virtual
async def test_the_more_nodes_the_less_may_be_under_way_from_each() -> None:
    one, other = await pair()
    link = one.open(other)
    assert link._link.window == WINDOW
    for number in range(31):
        one.links.open(Peer("other", str(number)), lambda _: None, lambda _: None)
    assert link._link.window == 32 * MB // 32
    for number in range(31, 300):
        one.links.open(Peer("other", str(number)), lambda _: None, lambda _: None)
    assert link._link.window == PUBLISH + ITEM
    for number in range(300):
        one.links.close(Peer("other", str(number)))
    assert link._link.window == WINDOW


# Turns


@virtual
async def test_a_flood_of_one_node_is_handled_in_turns() -> None:
    one, other = await pair(Steps())
    iterations = Iterations()
    link = one.open(other)

    def note(frame: PeerFrame) -> None:
        iterations.note()
        other.got["a"].append(number_of(frame))

    other.open(one, note)
    for number in range(1000):
        link.send(message(number))
    await until(lambda: link.idle)
    assert other.got["a"] == list(range(1000))
    assert 1 < iterations.most() <= 6


@virtual
async def test_many_publishes_in_one_iteration_of_the_loop_are_handled_in_turns() -> None:
    one, other = await pair(Steps())
    link = one.open(other)
    back = other.open(one)
    await asyncio.sleep(0.1)
    del one.publishes[:]
    other.links.rejoin("2")  # so that they do not arrive by themselves
    got: list[int] = []
    back = other.links.open(Peer("a", "1"), lambda frame: got.append(number_of(frame)), print)
    await asyncio.sleep(0.1)
    for number in range(100):
        link.send(message(number))
        await asyncio.sleep(0)
    data = [publish for publish in one.publishes if publish[0] == 4]
    assert len(data) == 100
    for publish in data:
        back.received(publish)
    assert 0 < len(got) <= 6
    await asyncio.sleep(0.1)
    assert got == list(range(100))


@virtual
async def test_work_in_portions_is_done_before_the_next_frame_and_in_turns() -> None:
    one, other = await pair(Steps())
    iterations = Iterations()
    done: list[tuple[int, int]] = []

    def receive(frame: PeerFrame) -> Iterator[None] | None:
        def work() -> Iterator[None]:
            for portion in range(20):
                iterations.note()
                done.append((number_of(frame), portion))
                yield

        return work() if number_of(frame) else None

    link = one.open(other)
    other.open(one, receive)
    for number in range(3):
        link.send(message(number))
    await until(lambda: link.idle)
    assert 1 < iterations.most() <= 6
    assert done == [(number, portion) for number in (1, 2) for portion in range(20)]


@virtual
async def test_a_mistake_in_the_handling_of_a_frame_does_not_hold_up_the_next() -> None:
    one, other = await pair()
    loop = asyncio.get_running_loop()
    told: list[str] = []
    loop.set_exception_handler(lambda _, context: told.append(repr(context["exception"])))
    got: list[int] = []

    def receive(frame: PeerFrame) -> None:
        if number_of(frame) == 1:
            raise RuntimeError("a mistake")
        got.append(number_of(frame))

    link = one.open(other)
    back = other.open(one, receive)
    for number in range(3):
        link.send(message(number))
    await until(lambda: link.idle)
    assert got == [0, 2]
    await asyncio.sleep(1.0)
    del one.publishes[:]
    one.bus._network.cut(told=False)
    link.send(message(1))
    await asyncio.sleep(0.01)
    back.received(one.publishes[0])  # and it is not raised there
    assert told == ["RuntimeError('a mistake')"] * 2


# Strangers and garbage


@virtual
async def test_what_is_for_no_link_is_dropped_and_nothing_is_kept_of_it() -> None:
    one, other = await pair()
    one.open(other)
    back = other.open(one)
    await asyncio.sleep(0.5)
    before, dropped = len(other.links._links), other.links.dropped
    strangers = [
        "wsr.test.l.b.1.c.1",
        "wsr.test.l.b.1.a.2",
        "wsr.test.l.b.2.a.1",
        "wsr.test.l.b.1.a",
        "wsr.test.l.b.1.a.1.1",
        "wsr.test.l.b.x",
    ]
    for subject in strangers:
        for _ in range(1000):
            one.bus.publish(subject, bytes(1000))
    await asyncio.sleep(0.1)
    assert other.links.dropped == dropped + 6000
    assert len(other.links._links) == before
    assert back._size == 0
    assert other.broken == []


@virtual
async def test_of_an_incarnation_that_is_dead_nothing_arrives_any_more() -> None:
    one, other = await pair()
    link = one.open(other)
    other.open(one)
    link.send(message(0))
    await until(lambda: link.idle)
    link.send(message(1))
    other.links.close(Peer("a", "1"))
    await asyncio.sleep(1.0)
    assert other.got["a"] == [0]
    assert not link.idle


@virtual
async def test_a_frame_that_ends_the_link_is_the_last_one() -> None:
    one, other = await pair()
    got: list[int] = []

    def receive(frame: PeerFrame) -> Iterator[None]:
        got.append(number_of(frame))
        if number_of(frame) == 1:
            other.links.close(Peer("a", "1"))
            return work()
        return iter(())

    def work() -> Iterator[None]:
        got.append(-1)
        yield

    link = one.open(other)
    other.open(one, receive)
    for number in range(3):
        link.send(message(number))
    await asyncio.sleep(1.0)
    assert got == [0, 1]
    assert other.broken == []


@virtual
async def test_a_node_that_joins_again_begins_anew() -> None:
    one, other = await pair()
    link = one.open(other)
    other.open(one)
    link.send(message(0))
    await until(lambda: link.idle)
    link.send(message(1))
    other.links.rejoin("2")
    other.me = Peer("b", "2")
    await asyncio.sleep(1.0)
    assert other.got["a"] == [0]
    one.links.close(Peer("b", "1"))
    link = one.open(other)
    other.open(one)
    link.send(message(2))
    await until(lambda: link.idle)
    assert other.got["a"] == [0, 2]


@virtual
async def test_a_second_link_to_the_same_incarnation_is_a_mistake() -> None:
    one, other = await pair()
    one.open(other)
    with pytest.raises(ValueError, match=r"the link to b \(1\) is open already"):
        one.open(other)


@virtual
async def test_a_node_that_has_stopped_is_told_nothing_and_publishes_nothing() -> None:
    one, other = await pair()
    link = one.open(other)
    other.open(one)
    other.links.stop()
    assert other.bus.on_connected == other.bus.on_disconnected == []
    del other.publishes[:]
    link.send(message(1))
    await asyncio.sleep(1.0)
    assert other.publishes == []
    assert other.got["a"] == []


def not_a_frame(link: PeerLink) -> None:
    link.send(b"\x91\xcd\x27\x0f")


def not_a_publish(link: PeerLink) -> None:
    link._bus.publish(link._subject, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


def not_an_acknowledgement(link: PeerLink) -> None:
    link._bus.publish(link._subject, b"\x00" + bytes([255] * 8))


@pytest.mark.parametrize("write", [not_a_frame, not_a_publish, not_an_acknowledgement])
def test_garbage_ends_the_link_and_is_told_and_other_links_go_on(
    write: Callable[[PeerLink], None],
) -> None:
    async def run() -> None:
        network = Network()
        one, other, third = (Side(network, name) for name in "abc")
        for side in (one, other, third):
            await side.links.start()
        link, good = one.open(other), third.open(other)
        back = other.open(one)
        other.open(third)
        await asyncio.sleep(0.5)
        back.when_room("one", lambda: None)
        write(link)
        link.send(message(1))
        good.send(message(1))
        await until(lambda: good.idle)
        await asyncio.sleep(1.0)
        assert other.got == {"a": [], "c": [1]}
        assert len(other.broken) == 1
        assert one.broken == [f"it has ended the link: {other.broken[0]}"]
        assert link.idle

    virtually(run())


@virtual
async def test_both_nodes_end_a_link_whatever_is_lost_and_say_no_more_then() -> None:
    one, other = await pair()
    link = one.open(other)
    back = other.open(one)
    await asyncio.sleep(0.1)
    for side in (one, other):
        side.bus._network.cut(side.name, told=False)
    back.end("garbage")
    await asyncio.sleep(1.5)
    assert one.broken == []
    other.bus._network.heal("a")
    other.bus._network.heal("b")
    await until(lambda: one.broken)
    assert one.broken == ["it has ended the link: garbage"]
    await asyncio.sleep(1.5)
    said = len(one.publishes) + len(other.publishes)
    link.send(message(1))
    await asyncio.sleep(5.0)
    assert len(one.publishes) + len(other.publishes) == said
    assert (one.got["b"], other.broken) == ([], ["garbage"])


@virtual
async def test_an_end_that_was_said_before_the_other_node_opened_its_link_is_heard() -> None:
    one, other = await pair()
    back = other.open(one)
    back.end("garbage")
    await asyncio.sleep(0.5)
    one.open(other)
    await until(lambda: one.broken)
    assert (one.broken, other.broken) == (["it has ended the link: garbage"], ["garbage"])


@virtual
async def test_an_end_that_waits_for_a_connection_is_said_when_there_is_one() -> None:
    one, other = await pair()
    one.open(other)
    back = other.open(one)
    await asyncio.sleep(0.1)
    other.bus.disconnect()
    await asyncio.sleep(0)
    back.end("garbage")
    await asyncio.sleep(3.0)
    assert one.broken == []
    other.bus.connect()
    await until(lambda: one.broken)


@virtual
async def test_a_link_that_has_ended_is_closed_with_its_node_and_says_no_more() -> None:
    one, other = await pair()
    back = other.open(one)
    back.end("garbage")
    await until(lambda: other.publishes)
    other.links.close(one.me)
    said = len(other.publishes)
    await asyncio.sleep(3.0)
    assert len(other.publishes) == said


@virtual
async def test_a_frame_that_its_receiver_refuses_ends_the_link() -> None:
    one, other = await pair()

    def receive(frame: PeerFrame) -> None:
        raise WireError(f"no such process as {number_of(frame)} can be")

    link = one.open(other)
    other.open(one, receive)
    link.send(message(1))
    link.send(message(2))
    await asyncio.sleep(1.0)
    assert other.broken == ["no such process as 1 can be"]


@virtual
async def test_publishes_that_wait_have_a_bound_and_beyond_it_only_time_is_lost() -> None:
    one, other = await pair(Steps())
    link = one.open(other)
    back = other.open(one)
    await asyncio.sleep(0.1)
    for number in range(50):
        link.send(message(number))
    for _ in range(100_000):
        back.received(b"\x00" + bytes(8))
    assert driver._MOST - 1000 < back._size <= driver._MOST
    assert back.dropped > 0
    await until(lambda: link.idle)
    assert other.got["a"] == list(range(50))


# Each rule broken

MUTATIONS: dict[str, tuple[str, str, Callable[[], None]]] = {
    "a publish for each frame": (
        "        elif self._next_turn is None:\n            self._soon()",
        "        else:\n            self._flush()",
        test_what_a_turn_sends_is_one_publish_and_arrives_in_order,
    ),
    "no timer": (
        "            self._timer, self._timer_at = self._loop.call_at(due, self._on_time), due",
        "            pass",
        test_nothing_is_lost_by_a_cut_that_nobody_is_told_of,
    ),
    "the first timer only": (
        "        self._timer, self._timer_at = None, math.inf\n        self._flush(now)",
        "        self._flush(now)",
        test_nothing_is_lost_by_a_cut_that_nobody_is_told_of,
    ),
    "it publishes while the bus is gone": (
        " or not self._bus.connected:",
        ":",
        test_beyond_sixteen_megabytes_others_are_to_be_refused,
    ),
    "a reconnect is not noticed": (
        "        self._link.connected()\n",
        "        if not self._link.statistics().sent:\n            self._link.connected()\n",
        test_nothing_is_lost_nor_doubled_by_a_connection_that_breaks,
    ),
    "no turns": (
        "while now < end and",
        "while",
        test_a_flood_of_one_node_is_handled_in_turns,
    ),
    "a turn for each publish": (
        "        if self._turn_ends is None:\n            self._turn_ends = now + _TURN",
        "        self._turn_ends = now + _TURN",
        test_many_publishes_in_one_iteration_of_the_loop_are_handled_in_turns,
    ),
    "work in portions is left for later": (
        "                elif frames:\n                    self._work =",
        "                if frames:\n                    self._work =",
        test_work_in_portions_is_done_before_the_next_frame_and_in_turns,
    ),
    "a mistake holds up the rest": (
        "if frames or publishes or self._work is not None:",
        "if False:",
        test_a_flood_of_one_node_is_handled_in_turns,
    ),
    "publishes wait without a bound": (
        "if self._size + size > _MOST:",
        "if False:",
        test_publishes_that_wait_have_a_bound_and_beyond_it_only_time_is_lost,
    ),
    "what is handled is still counted": (
        "                    self._size -= len(publish) + ITEM\n",
        "",
        test_nothing_is_lost_nor_doubled_by_a_connection_that_breaks,
    ),
    "a closed link handles what is left": (
        " and not self._closed:\n                if self._work",
        ":\n                if self._work",
        test_a_frame_that_ends_the_link_is_the_last_one,
    ),
    "who waits for room is never called": (
        "            callbacks, self._when_room = self._when_room, {}",
        "            return\n            callbacks, self._when_room = self._when_room, {}",
        test_a_sender_waits_for_room_while_nothing_is_carried,
    ),
    "who waits for room is called at once": (
        "if self._closed or not self._link.full:",
        "if True:",
        test_a_sender_waits_for_room_while_nothing_is_carried,
    ),
    "an end is said once": (
        "self._timer = self._loop.call_at(due, self._say_end)",
        "pass",
        test_both_nodes_end_a_link_whatever_is_lost_and_say_no_more_then,
    ),
    "an end is not confirmed": (
        "                self._ending.received(publish)\n",
        "",
        test_both_nodes_end_a_link_whatever_is_lost_and_say_no_more_then,
    ),
    "an end waits for no connection": (
        "        self._say_end()\n\n    def disconnected",
        "\n    def disconnected",
        test_an_end_that_waits_for_a_connection_is_said_when_there_is_one,
    ),
    "closing leaves who waits for room": (
        "        self._link = Link()\n        self._tell_room()",
        "        self._link = Link()",
        test_who_waits_for_room_goes_on_when_the_link_is_closed,
    ),
}


@pytest.mark.parametrize(("old", "new", "test"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_driver_with_one_rule_less_is_noticed(
    old: str, new: str, test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("wsrelay.peers.mutated")
    source = replaced(inspect.getsource(driver), old, new)
    exec(compile(source, module.__name__, "exec"), module.__dict__)  # noqa: S102 - it is our own
    monkeypatch.setattr(links, "PeerLink", module.PeerLink)
    with pytest.raises((AssertionError, TypeError, ValueError, RuntimeError)):
        test()
