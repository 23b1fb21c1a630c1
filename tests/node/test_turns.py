"""What one process makes the node do is cut into turns, so that others have theirs."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
from hostile import own_pipe
from one_node import left_as_found
from support import end_of, processes, until, value_of

from wsrelay import Node, aio, process, wire
from wsrelay.node import router
from wsrelay.node.host import NodePipe
from wsrelay.node.host import pipe as pipes
from wsrelay.values.pid import LONGEST
from wsrelay.wire.pipe_pair import Duplex

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


MB = 1024 * 1024


# Many receivers


@pytest.mark.parametrize("count_", [0, 1, 245, 246, 9_999, 10_000, 10_001, 25_000])
def test_receivers_go_into_as_many_frames_as_it_takes(count_: int) -> None:
    receivers = [f"room {number}" for number in range(count_)]
    portions = list(wire.portions(receivers))
    assert [one for portion in portions for one in portion] == receivers
    assert len(portions) == max(1, -(-count_ // wire.MAX_RECEIVERS))


@pytest.mark.parametrize("name", ["x" * LONGEST, "\U0001f600" * LONGEST], ids=["ascii", "wide"])
def test_each_portion_of_long_names_fits_into_a_frame(name: str) -> None:
    for portion in wire.portions([name] * 5_000):
        data = wire.pack_request(wire.SendFrame(portion, "t" * LONGEST, bytes(5 * MB)))
        assert wire.from_worker().feed(data)


def send_to_many(me: str) -> list[str]:
    process.send([me, *(f"nobody {number}" for number in range(25_000)), me], "many", "x")
    process.send(me, "one", "y")
    return [process.inbox().receive(20).topic for _ in range(3)]


async def send_to_many_in_a_loop() -> list[str]:
    me = aio.process.pid()
    many = [*(f"nobody {number}" for number in range(25_000)), me]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(aio.process.send(many, "many", "x"))
        tasks.create_task(aio.process.send(me, "one", "y"))
    return [(await aio.process.inbox().receive(20)).topic for _ in range(2)]


def send_to_many_of_mine() -> list[str]:
    return send_to_many(process.pid())


async def test_a_message_for_more_than_ten_thousand_arrives_in_its_order(node: Node) -> None:
    assert await value_of(node, send_to_many_of_mine) == ["many", "many", "one"]
    assert await value_of(node, send_to_many_in_a_loop) == ["many", "one"]
    assert node.dead_letters == 50_000


def write_to_too_many() -> None:
    body = msgspec.msgpack.encode([1, [""] * 25_000_000, "t", b""])
    own_pipe().ends.write_all(len(body).to_bytes(4, "big") + body)
    threading.Event().wait()


async def test_a_frame_for_millions_ends_its_writer(node: Node) -> None:
    error = (await end_of(node, write_to_too_many)).error
    assert error is not None
    assert "killed: it wrote garbage on its pipe" in error.message
    assert "it has more than 10,100 elements" in error.message


# Turns


class Other:
    """Whoever else waits for the event loop: notes when it had its turn."""

    def __init__(self, seen: list[Any]) -> None:
        self._seen = seen
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._seen.append("other")
        self._handle = self._loop.call_soon(self._turn)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._handle.cancel()


def without_others(seen: list[Any]) -> list[Any]:
    return [one for one in seen if one != "other"]


def alternates(seen: list[Any]) -> bool:
    """Whether the other had a turn between any two that were done."""
    done = [index for index, one in enumerate(seen) if one != "other"]
    return all("other" in seen[a:b] for a, b in itertools.pairwise(done))


@pytest.fixture
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_TURN", 0.0)


shortest_turns = pytest.mark.usefixtures("no_time")


@pytest.fixture
async def flood() -> AsyncIterator[tuple[Duplex, list[wire.FromWorker]]]:
    """A pipe's end with a flood of small frames in it."""
    ours, theirs = Duplex.pair()
    frames: list[wire.FromWorker] = [wire.AckFrame(number) for number in range(1000)]
    theirs.write_all(b"".join(map(wire.pack, frames)))
    with theirs:
        yield ours, frames


Flood = tuple[Duplex, list[wire.FromWorker]]


@shortest_turns
async def test_a_flood_of_small_frames_leaves_all_others_their_turns(flood: Flood) -> None:
    ours, frames = flood
    seen: list[Any] = []
    with Other(seen):
        pipe = NodePipe(ours, seen.append, seen.append, lambda: None)
        await until(lambda: len(without_others(seen)) == len(frames), "all were received")
        pipe.close()
    assert without_others(seen) == frames
    # The first two may share a turn, in which there is no first time to compare with.
    assert alternates(seen[seen.index(frames[1]) :])


@shortest_turns
async def test_a_hold_and_its_release_in_the_middle_of_a_flood_lose_nothing(flood: Flood) -> None:
    ours, frames = flood
    seen: list[Any] = []

    def receive(frame: wire.FromWorker) -> None:
        seen.append(frame)
        if len(seen) % 100 == 0:
            held.hold("client")
            asyncio.get_running_loop().call_later(0.001, held.release, "client")

    held = NodePipe(ours, receive, seen.append, lambda: None)
    await until(lambda: len(seen) == len(frames), "all were received")
    held.close()
    assert seen == frames


@shortest_turns
async def test_what_the_dead_left_comes_in_turns_too_and_before_its_end(flood: Flood) -> None:
    ours, frames = flood
    seen: list[Any] = []
    with Other(seen):
        pipe = NodePipe(ours, seen.append, seen.append, lambda: None)
        pipe.hold("a client that does not read")
        pipe.finish(lambda: seen.append("over"))
        await until(lambda: "over" in seen, "all was taken in")
    assert without_others(seen) == [*frames, "over"]
    assert alternates(seen[seen.index(frames[1]) : seen.index("over")])


@shortest_turns
async def test_what_is_to_be_taken_in_at_once_waits_for_no_turn(flood: Flood) -> None:
    ours, frames = flood
    seen: list[Any] = []
    pipe = NodePipe(ours, seen.append, seen.append, lambda: None)
    pipe.finish(lambda: seen.append("over"))
    assert len(seen) < len(frames)
    pipe.take_in_at_once()
    assert seen == [*frames, "over"]


@shortest_turns
async def test_what_a_frame_makes_work_in_portions_leaves_others_their_turns(flood: Flood) -> None:
    """Also while the pipe is held, and the next frame comes behind all of it."""
    ours, frames = flood
    seen: list[Any] = []

    def receive(frame: wire.FromWorker) -> Iterator[None] | None:
        seen.append(frame)
        if frame == frames[10]:
            pipe.hold("client")
            return work()
        return None

    def work() -> Iterator[None]:
        for number in range(50):
            seen.append(number)
            yield

    with Other(seen):
        pipe = NodePipe(ours, receive, seen.append, lambda: None)
        await until(lambda: 49 in seen, "the work is done")
        pipe.release("client")
        await until(lambda: len(without_others(seen)) == len(frames) + 50, "all is received")
        pipe.close()
    assert without_others(seen) == [*frames[:11], *range(50), *frames[11:]]
    assert alternates(seen[seen.index(0) : seen.index(49) + 1])


def tell_many_and_end(to: str) -> None:
    process.send([*(f"nobody {number}" for number in range(5_000)), to], "last words", 0)


def hear_and_watch() -> list[str]:
    me = process.pid()

    def tell() -> None:
        tell_many_and_end(me)

    process.spawn_monitored(tell)
    process.events().receive(20)
    return [process.inbox().receive(0).topic]


@shortest_turns
async def test_messages_to_many_come_before_the_exit_of_their_sender(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "_PORTION", 10)
    assert await value_of(node, hear_and_watch) == ["last words"]


@shortest_turns
async def test_a_node_that_ends_does_not_leave_turns_behind() -> None:
    """Nor does it wait for those of a worker that floods it up to its end."""

    def flood() -> None:
        while True:
            process.send("nobody", "flood", None)

    async with Node(hosts=[processes(stop_timeout=0.2)]) as node:
        await node.started(node.spawn(flood))
        await until(lambda: node.dead_letters > 1000, "it floods")
