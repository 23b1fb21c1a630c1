"""Room for what workers have begun to write and not finished: bounded for all of a node."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import logging
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from support import end_of, processes, until

from wsrelay import ExitKind, Node, Result, process, wire
from wsrelay.node.host import NodePipe, Unfinished
from wsrelay.node.host import unfinished as books
from wsrelay.node.host.unfinished import LARGE, Share
from wsrelay.session.machine import close_for
from wsrelay.values.pid import PID
from wsrelay.wire import payload
from wsrelay.wire.pipe_pair import Duplex

pytestmark = pytest.mark.anyio

KB = 1024
MB = 1024 * 1024
SIZE = 400 * KB
"""Of a large message: two of them have room in the books of these tests, three have not."""


def large(number: int = 0) -> wire.SendFrame:
    return wire.SendFrame("somebody", "large", payload.pack([number, bytes(SIZE)]))


def small(number: int = 0) -> wire.SendFrame:
    return wire.SendFrame("somebody", "small", payload.pack(number))


ROOM = len(wire.pack(large()))


class Writer:
    """A worker's end of a pipe, with a thread that writes, and what the node's end makes of it."""

    def __init__(self, book: Unfinished, number: int) -> None:
        self.ours, self.theirs = Duplex.pair()
        self.received: list[wire.FromWorker] = []
        self.problems: list[str] = []
        self.work: Iterator[None] | None = None
        account = book.account(f"worker {number}", self._overdue)
        self.pipe = NodePipe(self.ours, self._receive, self.problems.append, lambda: None, account)
        self._thread: threading.Thread | None = None

    def _receive(self, frame: wire.FromWorker) -> Iterator[None] | None:
        self.received.append(frame)
        return self.work

    def _overdue(self, problem: str) -> None:
        """End as a worker that is killed."""
        self.problems.append(problem)
        self.pipe.finish(lambda: None)

    def write(self, data: bytes) -> None:
        """Write in another thread, behind what is written already."""
        before = self._thread

        def run() -> None:
            if before is not None:
                before.join()
            with contextlib.suppress(OSError):  # the node has closed its end
                self.theirs.write_all(data)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    @property
    def partial(self) -> int:
        return self.pipe._reader.partial

    @property
    def share(self) -> Share | None:
        return self.pipe._share

    def close(self) -> None:
        if not self.pipe._closed:
            self.pipe.close()
        if self._thread is not None:
            self._thread.join()
        self.theirs.close()


@pytest.fixture
def book() -> Unfinished:
    return Unfinished(MB)


Writers = Callable[[int], list[Writer]]


@pytest.fixture
async def writers(book: Unfinished) -> AsyncIterator[Writers]:
    made: list[Writer] = []

    def make(count: int) -> list[Writer]:
        new = [Writer(book, len(made) + number) for number in range(count)]
        made.extend(new)
        return new

    yield make
    for writer in made:
        writer.close()
    assert (book.size, book.waiting, book._next_look) == (0, 0, None)


# The bound


async def test_of_many_who_do_not_finish_a_few_have_room_and_the_others_wait(
    book: Unfinished, writers: Writers
) -> None:
    many = writers(10)
    data = [wire.pack(large(number)) for number in range(10)]
    for writer, content in zip(many, data, strict=True):
        writer.write(content[:-1])
    await until(lambda: book.waiting == 8, "all the others wait")
    await until(
        lambda: sorted(writer.partial for writer in many)[-2:] == [ROOM - 1] * 2, "two are read"
    )
    assert book.size == 2 * ROOM <= book.most
    waiting = [writer for writer in many if writer.partial < ROOM - 1]
    assert all(writer.partial <= 64 * KB for writer in waiting), "one read, with the length in it"
    for writer, content in zip(many, data, strict=True):
        writer.write(content[-1:])
    await until(lambda: all(writer.received for writer in many), "all are served")
    assert [writer.received for writer in many] == [[large(number)] for number in range(10)]


@pytest.mark.parametrize("turn", [0.0, 0.0005], ids=["shortest turns", "turns"])
async def test_what_waits_for_room_is_neither_lost_nor_out_of_order(
    writers: Writers, monkeypatch: pytest.MonkeyPatch, turn: float
) -> None:
    monkeypatch.setattr("wsrelay.node.host.pipe._TURN", turn)
    many = writers(6)
    frames = [frame for n in range(0, 12, 2) for frame in (small(n), large(n), small(n + 1))]
    data = b"".join(map(wire.pack, frames))
    for writer in many:
        writer.work = iter(()) if turn else None
        writer.write(data)
    await until(lambda: all(len(writer.received) == len(frames) for writer in many), "all is there")
    assert all(writer.received == frames for writer in many)


async def test_who_came_first_is_served_first_also_where_a_later_one_would_fit() -> None:
    book = Unfinished(100)
    account = book.account("worker", lambda _: None)
    served: list[Share] = []
    first, second = (account.begin(size, lambda: 0, served.append) for size in (60, 30))
    third, fourth, fifth = (account.begin(size, lambda: 0, served.append) for size in (80, 10, 60))
    assert (first.is_granted, second.is_granted, third.is_granted) == (True, True, False)
    assert not fourth.is_granted, "it would fit, but another one waits"
    second.give_back()
    assert served == []
    first.give_back()
    first.give_back()
    assert served == [third, fourth]
    assert book.size == 90
    third.give_back()
    assert served == [third, fourth, fifth]
    for share in (fourth, fifth):
        share.give_back()
    assert (book.size, book.waiting, book._next_look) == (0, 0, None)


async def test_a_message_larger_than_all_of_the_room_waits_until_nothing_else_has_some() -> None:
    book = Unfinished(100)
    account = book.account("worker", lambda _: None)
    served: list[Share] = []
    small_one = account.begin(10, lambda: 0, served.append)
    huge = account.begin(1000, lambda: 0, served.append)
    assert not huge.is_granted
    small_one.give_back()
    assert served == [huge]
    huge.give_back()


async def test_messages_that_are_not_large_wait_for_nobody(
    book: Unfinished, writers: Writers
) -> None:
    *holders, other = writers(4)
    for holder in holders:
        holder.write(wire.pack(large())[:-1])
    await until(lambda: book.waiting == 1, "there is no room")
    frame = wire.SendFrame("somebody", "topic", bytes(LARGE - 100))
    other.write(wire.pack(frame) * 3)
    await until(lambda: len(other.received) == 3, "they came")
    assert book.waiting == 1


async def test_room_is_kept_while_a_message_makes_work(
    book: Unfinished, writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrelay.node.host.pipe._TURN", 0.0)
    seen: list[int] = []

    def work() -> Iterator[None]:
        for _ in range(5):
            seen.append(book.size)
            yield

    [writer] = writers(1)
    writer.work = work()
    writer.write(wire.pack(large()))
    await until(lambda: len(seen) == 5 and not book.size, "it is done")
    assert seen == [ROOM] * 5


async def test_who_is_held_by_a_client_has_no_room_meanwhile(
    book: Unfinished, writers: Writers
) -> None:
    """Else a client that does not read would keep others from writing."""
    [writer] = writers(1)

    def deliver() -> Iterator[None]:
        writer.pipe.hold("client")
        yield

    writer.work = deliver()
    writer.write(wire.pack(small()) + wire.pack(large()))
    await until(lambda: writer.received and writer.partial, "it is held in the large one")
    assert (writer.share, book.size) == (None, 0)
    writer.work = None
    writer.pipe.release("client")
    await until(lambda: writer.received == [small(), large()], "it goes on")


# Those who do not get on


async def full(book: Unfinished, writers: Writers) -> list[Writer]:
    """Two who have all of the room and do not go on, and one who waits."""
    first, second, third = writers(3)
    for writer in (first, second):
        await begun(writer)
    third.write(wire.pack(large())[:-1])
    await until(lambda: book.waiting == 1, "it waits")
    return [first, second, third]


async def begun(writer: Writer) -> None:
    """Let one write all of a large message but its last byte."""
    writer.write(wire.pack(large())[:-1])
    await until(lambda: writer.partial == ROOM - 1, "that is read")


async def test_who_does_not_get_on_is_ended_only_while_others_wait(
    book: Unfinished, writers: Writers
) -> None:
    first, other = writers(2)
    for writer in (first, other):
        await begun(writer)
    assert book._next_look is None, "nobody waits, so nobody looks"
    [waiting] = writers(1)
    waiting.write(wire.pack(large()))
    await until(lambda: book.waiting, "it waits")
    other.write(wire.pack(large())[-1:])
    await until(lambda: waiting.received, "it has the room of one who has finished")
    assert book._next_look is None
    assert first.problems == []


async def test_who_stands_still_while_others_wait_is_ended_and_they_go_on(
    book: Unfinished, writers: Writers
) -> None:
    """One at a time, who has had room for the longest first."""
    first, second, third = await full(book, writers)
    for _ in range(books._PATIENCE):
        book._look()
        assert first.problems == second.problems == []
    third.write(wire.pack(large())[-1:])
    book._look()  # the first one told only how much there is
    said = (
        f"unfinished message limit of 1MB (of all processes) reached: {ROOM - 1} bytes of its "
        f"message of {ROOM} arrived, but the rest did not"
    )
    assert first.problems == [said]
    await until(lambda: third.received, "it goes on")
    assert second.problems == third.problems == []


async def test_who_gets_on_is_not_ended_and_a_late_look_counts_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(books, "_TELL_EVERY", 0.0)
    book, ended, there = Unfinished(100), list[str](), 0
    account = book.account("worker", ended.append)
    share = account.begin(100, lambda: there, lambda _: None)
    waiting = account.begin(100, lambda: 0, lambda _: None)
    for _ in range(5 * books._PATIENCE):
        there += books._LEAST
        book._look()
    assert ended == []
    for _ in range(5 * books._PATIENCE):
        book._due -= 10  # the event loop was held up, and read nothing
        book._look()
    assert ended == []
    for _ in range(books._PATIENCE):
        there += books._LEAST - 1
        book._look()
    assert len(ended) == 1
    waiting.give_back()
    share.give_back()


async def test_who_waits_is_told_in_the_log_now_and_then(
    book: Unfinished, writers: Writers, caplog: pytest.LogCaptureFixture
) -> None:
    await full(book, writers)
    for _ in range(3):
        book._look()
    [line] = [line for line in caplog.messages if "wait to write" in line]
    assert line == (
        f"1 processes wait to write messages above 256KB: {2 * ROOM} bytes of at most 1MB are "
        f"unfinished, most of them of worker 0 ({ROOM} bytes), worker 1 ({ROOM} bytes)"
    )


# What ends


async def test_what_the_dead_left_waits_for_no_room(book: Unfinished, writers: Writers) -> None:
    await full(book, writers)
    [dead] = writers(1)
    fcntl.fcntl(dead.theirs.writing, fcntl.F_SETPIPE_SZ, MB)
    dead.theirs.write_all(wire.pack(large()) + wire.pack(small(1)) + wire.pack(large())[:-1])
    await until(lambda: dead.share is not None, "it waits")
    over: list[bool] = []
    dead.pipe.finish(lambda: over.append(True))
    await until(lambda: over, "it is over")
    assert dead.received == [large(), small(1)]
    assert (dead.partial, dead.share) == (0, None)
    assert (book.size, book.waiting) == (2 * ROOM, 1)


@pytest.mark.parametrize("how", ["dead", "closed", "end of file", "garbage"])
async def test_a_message_that_will_not_be_finished_gives_its_room_to_others(
    book: Unfinished, writers: Writers, how: str
) -> None:
    one, _, third = await full(book, writers)
    match how:
        case "dead":
            one.pipe.finish(lambda: None)
        case "closed":
            one.pipe.close()
        case "end of file":
            one.theirs.close()
        case "garbage":
            one.write(b"\0" + b"\xff" * 4)
    third.write(wire.pack(large())[-1:])
    await until(lambda: third.received, "it goes on")
    assert one.partial == 0


async def test_who_waits_and_ends_waits_no_more(book: Unfinished, writers: Writers) -> None:
    one, _, third = await full(book, writers)
    [fourth] = writers(1)
    fourth.write(wire.pack(large()))
    await until(lambda: book.waiting == 2, "it waits")
    third.pipe.finish(lambda: None)
    assert book.waiting == 1
    one.write(wire.pack(large())[-1:])
    await until(lambda: fourth.received, "it goes on")


# Processes


@pytest.fixture
async def node(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Node]:
    """One with little room, and quick looks at who has it."""
    monkeypatch.setattr(books, "MOST", MB)
    monkeypatch.setattr(books, "_LOOK", 0.1)
    async with Node(hosts=[processes(stop_timeout=0.5)]) as node:
        book = node.engine.unfinished
        yield node
    assert (book.size, book.waiting, book._next_look) == (0, 0, None)


def begin(size: int) -> None:
    """Write all of a large message but for its end, and wait."""
    own: Any = process._worker().pipe
    own.ends.write_all(size.to_bytes(4, "big") + bytes(size - 1))
    threading.Event().wait()


def return_and_stay(size: int) -> None:
    own: Any = process._worker().pipe
    own.write(wire.DoneFrame(payload.pack(bytes(size)), None, 0, []))
    threading.Event().wait()


def give(size: int) -> bytes:
    return bytes(size)


async def spawned(node: Node, target: Any, *args: Any) -> tuple[PID, list[Result]]:
    results: list[Result] = []
    pid = node.spawn(target, None, *args)
    node.when_ended(pid, results.append)
    return pid, results


@contextlib.contextmanager
def patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is ended meanwhile."""
    with monkeypatch.context() as patched:
        patched.setattr(books, "_PATIENCE", 10**9)
        yield


async def test_a_process_that_does_not_finish_its_message_is_ended_when_another_waits(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    _, results = await spawned(node, begin, 900 * KB)
    await until(lambda: node.engine.unfinished.size, "it has begun")
    assert await end_of(node, give, 900 * KB) == Result(bytes(900 * KB))
    await until(lambda: results, "it was ended")
    [result] = results
    error = result.error
    assert error is not None
    assert error.kind == ExitKind.LIMIT
    assert error.message == (
        f"unfinished message limit of 1MB (of all processes) reached: {900 * KB + 3} bytes of its "
        f"message of {900 * KB + 4} arrived, but the rest did not"
    )
    assert error.message in caplog.text
    assert close_for(Result(error=error), join_read=True) == (
        1011,
        "target process killed (unfinished message limit)",
    )


async def test_a_process_that_has_returned_and_does_not_end_is_ended_when_another_waits(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    _, results = await spawned(node, return_and_stay, 900 * KB)
    await until(lambda: node.engine.unfinished.size == 900 * KB + 5, "its value is kept")
    assert results == []
    assert await end_of(node, give, 900 * KB) == Result(bytes(900 * KB))
    await until(lambda: results, "it was ended")
    assert results == [Result(bytes(900 * KB))], "it has said how it ends, and is believed"
    assert f"reached: it has returned {900 * KB + 5} bytes and does not end" in caplog.text


async def test_what_a_process_has_returned_is_not_kept_once_its_end_is_told(node: Node) -> None:
    """Whether or not Python's collector comes: it took 1.2 GB for twenty who returned 60 MB."""
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(5):
            assert len((await end_of(node, give, 10 * MB)).value) == 10 * MB
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    assert kept < 25 * MB


async def test_a_killed_process_gives_room_to_one_that_waits(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with patience(monkeypatch):
        pid, _ = await spawned(node, begin, 900 * KB)
        await until(lambda: node.engine.unfinished.size, "it has begun")
        _, results = await spawned(node, give, 900 * KB)
        await until(lambda: node.engine.unfinished.waiting, "the other waits")
        node.terminate(pid)
        await until(lambda: results, "the other has ended")
        assert results == [Result(bytes(900 * KB))]


@pytest.mark.parametrize("how", ["cancel", "terminate"])
async def test_a_process_that_waits_for_room_can_be_ended(
    node: Node, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with patience(monkeypatch):
        await spawned(node, begin, 900 * KB)
        await until(lambda: node.engine.unfinished.size, "one has begun")
        pid, results = await spawned(node, give, 900 * KB)
        await until(lambda: node.engine.unfinished.waiting, "the other waits")
        getattr(node, how)(pid)
        await until(lambda: results, "it has ended")
        [result] = results
        error = result.error
        kind = ExitKind.CANCELLED if how == "cancel" else ExitKind.TERMINATED
        assert error is not None
        assert error.kind == kind
        assert node.engine.unfinished.waiting == 0


@pytest.mark.parametrize("closing", [True, False], ids=["closed", "its event loop ends"])
def test_a_node_ends_while_some_wait_for_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, closing: bool
) -> None:
    import asyncio  # noqa: PLC0415 - the loop of this test is its own

    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(books, "MOST", MB)
    node = Node(hosts=[processes(stop_timeout=0.2)])

    async def main() -> Unfinished:
        node.start()
        for size in (900 * KB, 900 * KB, 800 * KB, 100 * KB):
            node.spawn(begin if size > 100 * KB else give, None, size)
        await until(lambda: node.engine.unfinished.waiting == 2, "two wait")
        book = node.engine.unfinished
        if closing:
            await node.aclose()
        return book

    book = asyncio.run(main())
    assert (book.size, book.waiting, book._next_look) == (0, 0, None)
    assert not node.running
