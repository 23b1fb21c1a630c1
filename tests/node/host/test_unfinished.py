"""Room for what workers have begun to write and not finished: bounded for all of a node."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from support import until

from wsrelay import wire
from wsrelay.node.host import NodePipe, Unfinished
from wsrelay.node.host import unfinished as books
from wsrelay.node.host.unfinished import LARGE, Share
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
