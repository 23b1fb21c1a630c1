"""The worker's end of its pipe and its mailbox, under signals, threads and coroutines at once."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import msgspec
import pytest
from support import TIMEOUT, until

from wsrelay import Client, Event, aio, process, wire
from wsrelay.aio import process as aio_process
from wsrelay.errors import ChannelClosed
from wsrelay.values.message import Message, Relayed
from wsrelay.values.pid import PID
from wsrelay.values.presence import Presence
from wsrelay.wire import payload
from wsrelay.wire.pipe_pair import Duplex
from wsrelay.worker import mailbox, pipe, queues, short_way, sorting
from wsrelay.worker.mailbox import Mailbox
from wsrelay.worker.pipe import WorkerPipe

pytestmark = pytest.mark.anyio

CLIENT = "{local@gateway|1.0-1}"
MODULES = (wire, pipe, mailbox, process, queues, short_way, sorting)
OURS = tuple(module.__file__ for module in MODULES)
SIZES = (10, 100, 3000, 5000, 100_000, 300_000)


class Alarm(BaseException):
    """What the tests' signal handler raises."""


class Other:
    """The node's side: reads what the worker writes, and can stop doing so."""

    def __init__(self) -> None:
        self.ends, theirs = Duplex.pair()
        self.pipe = WorkerPipe(theirs)
        self.mailbox = Mailbox(self.pipe)
        self.frames: list[Any] = []
        self.problem: BaseException | None = None
        self._thread = threading.Thread(target=self._read)
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._thread.start()

    def _read(self) -> None:
        reader = wire.from_worker()
        try:
            while data := os.read(self.ends.reading, 1 << 16):
                self.frames += [frame for frame, _ in reader.feed(data)]
            assert not reader.partial, "a frame was cut"
        except BaseException as error:  # noqa: BLE001 - told by `numbers`
            self.problem = error

    def numbers(self) -> list[int]:
        """Read to the end; gives the numbers of the messages."""
        if self._thread.ident is None:
            self.start()
        deadline = time.monotonic() + TIMEOUT
        while self.pipe.line and time.monotonic() < deadline:
            time.sleep(0.01)
        self.pipe.ends.close_writing()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        assert self.problem is None
        sends = [frame for frame in self.frames if isinstance(frame, wire.SendFrame)]
        return [payload.decode(frame.payload)[0] for frame in sends]

    def fill(self) -> int:
        """Write small messages until there is no room for another; returns how many."""
        count = 0
        try:
            while True:
                os.write(self.pipe.ends.writing, wire.pack(message(count)))
                count += 1
        except BlockingIOError:
            return count

    def tell(self, *frames: wire.Frame) -> None:
        self.ends.write_all(b"".join(map(wire.pack, frames)))

    def close(self) -> None:
        if self.mailbox._loop is not None and not self.mailbox._loop.is_closed():
            self.mailbox._loop.remove_reader(self.pipe.ends.reading)
        self.ends.close_writing()
        self.pipe.ends.close()
        if self._thread.is_alive():
            self._thread.join(TIMEOUT)
        self.ends.close()


@pytest.fixture
def other() -> Iterator[Other]:
    with contextlib.closing(Other()) as other:
        yield other


def message(number: int, size: int = 10) -> wire.SendFrame:
    return wire.SendFrame("somebody", "topic", payload.encode([number, bytes(size)]))


def delivered(number: int, size: int = 10) -> wire.DeliverFrame:
    content = payload.encode([number, bytes(size)])
    return wire.DeliverFrame("topic", "{local@processes|1.0-2}", content)


ATTACHED = wire.AttachFrame(CLIENT, msgspec.Raw(payload.pack({"user": "ann"})))


def relayed(number: int, size: int = 0) -> wire.RelayFrame:
    data = str(number).ljust(size)
    return wire.RelayFrame("ws.message", CLIENT, {"type": "text", "data": data})


def number_of(item: Message) -> int:
    """The number in a message of the client, which has everything that it should have."""
    assert item.client == item.sender == item.payload["client_pid"] == CLIENT
    assert item.payload["metadata"] == {"user": "ann"}
    return int(item.payload["data"])


@contextlib.contextmanager
def alarms(seconds: float, ring: Callable[[], None]) -> Iterator[None]:
    """Call `ring` again and again from a signal handler, wherever our own code is at work."""

    def handle(_: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code.co_filename in OURS:
            ring()

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Ring:
    """Raises `Alarm`, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        raise Alarm


@pytest.mark.parametrize("way", ["write", "post"])
def test_an_exception_of_a_signal_handler_cuts_no_frame(other: Other, way: str) -> None:
    """Small and large ones, at an empty and at a full pipe: none torn, lost or doubled."""
    other.start()
    written, ring, number = set(), Ring(), 0
    chance = random.Random(1)  # noqa: S311 - no secret
    write = getattr(other.pipe, way)
    with alarms(0.0002, ring):
        while ring.count < 300 and number < 200_000:
            size = chance.choice(SIZES) if number % 10 == 0 else 50
            while other.pipe._waiting > 1_000_000:  # `post` waits for nothing
                time.sleep(0.001)
            try:
                write(message(number, size))
                written.add(number)
            except Alarm:
                pass
            number += 1
    other.pipe.write(message(number))
    numbers = other.numbers()
    assert ring.count >= 300
    assert numbers == sorted(set(numbers)), "in order, and each once"
    assert written <= set(numbers)


def test_a_frame_that_had_begun_goes_out_though_nothing_else_is_written(other: Other) -> None:
    """And the exception does not wait for the other side to read it."""
    write, large = other.pipe.write, message(1, 1_000_000)
    with pytest.raises(Alarm), alarms(0.01, Ring()):
        write(large)  # nobody reads
    other.start()
    deadline = time.monotonic() + TIMEOUT
    while not other.frames and time.monotonic() < deadline:
        time.sleep(0.01)
    assert other.numbers() == [1]


def test_a_frame_that_had_not_begun_when_a_signal_handler_raised_is_not_written(
    other: Other,
) -> None:
    count = other.fill()
    with pytest.raises(Alarm), alarms(0.01, Ring()):
        other.pipe.write(message(-1))
    assert other.numbers() == list(range(count))


def test_a_signal_handler_may_write_itself(other: Other) -> None:
    """Also while this very thread is in the middle of a frame, or waits for room."""
    other.start()
    count = 0

    def ring() -> None:
        nonlocal count
        count += 1
        other.pipe.write(wire.CancelFrame("somebody", str(count)))

    number = 0
    with alarms(0.0003, ring):
        while count < 200 and number < 200_000:
            other.pipe.write(message(number, SIZES[number % 60 // 10]))
            number += 1
    assert other.numbers() == list(range(number))
    cancels = [int(frame.reason) for frame in other.frames if isinstance(frame, wire.CancelFrame)]
    assert sorted(cancels) == list(range(1, count + 1))


def check_acknowledged(other: Other, size: int) -> None:
    """The node was told that so many bytes were taken, but for a rest."""
    other.numbers()
    told = [frame.total for frame in other.frames if isinstance(frame, wire.AckFrame)]
    assert told == sorted(told)
    assert 0 <= size - told[-1] < wire.WINDOW // 4


@pytest.mark.parametrize(("count", "sizes"), [(20_000, SIZES[:4]), (500, SIZES)])
def test_an_exception_of_a_signal_handler_loses_no_message(
    other: Other, count: int, sizes: tuple[int, ...]
) -> None:
    """Neither while it is read, nor while it is sorted, taken or acknowledged."""
    other.start()
    ring = Ring()
    chance = random.Random(2)  # noqa: S311 - no secret
    frames = [wire.pack(delivered(n, chance.choice(sizes))) for n in range(count)]
    feeder = threading.Thread(target=other.ends.write_all, args=(b"".join(frames),))
    feeder.start()
    taken: list[int] = []
    with alarms(0.0003, ring):
        while len(taken) < count:
            try:
                _, item = other.mailbox.take(other.mailbox.inbox, timeout=TIMEOUT)
            except Alarm:
                continue
            taken += (item.payload[0],)
    feeder.join()
    assert ring.count > 50
    assert taken == list(range(count))
    assert other.pipe.received == count
    check_acknowledged(other, sum(map(len, frames)))


def test_an_exception_of_a_signal_handler_loses_no_message_of_a_client(other: Other) -> None:
    """Not on the short way either, nor where it begins and ends."""
    other.start()
    ring, count = Ring(), 30_000
    chance = random.Random(3)  # noqa: S311 - no secret
    sizes = [chance.choice((0, 0, 0, 100, 3000)) for _ in range(count)]
    sizes[:: count // 20] = [70_000] * len(sizes[:: count // 20])
    frames = [wire.pack(ATTACHED), *(wire.pack(relayed(*each)) for each in enumerate(sizes))]
    feeder = threading.Thread(target=other.ends.write_all, args=(b"".join(frames),))
    feeder.start()
    taken: list[int] = []
    with alarms(0.0003, ring):
        while len(taken) < count:
            try:
                for item in process.Channel(other.mailbox, other.mailbox.inbox):
                    taken += (number_of(item),)
                    if len(taken) == count:
                        break
            except Alarm:
                pass
    feeder.join()
    assert ring.count > 50
    assert taken == list(range(count))
    assert other.pipe.received == count + 1
    check_acknowledged(other, sum(map(len, frames)))


def test_an_exception_of_a_signal_handler_loses_nothing_of_both_lanes_and_no_end(
    other: Other,
) -> None:
    """Each message and event once, and CANCEL after all of them."""
    other.start()
    ring, count = Ring(), 12_000
    frames = [wire.pack(ATTACHED)]
    for number in range(count):
        frames.append(wire.pack(relayed(number)))
        if number % 10 == 0:
            frames.append(wire.pack(wire.SignalFrame("EXIT", CLIENT, str(number))))
    frames.append(wire.pack(wire.SignalFrame("CANCEL", CLIENT)))
    frames.append(wire.pack(wire.CloseInboxFrame()))
    feeder = threading.Thread(target=other.ends.write_all, args=(b"".join(frames),))
    feeder.start()
    channel = process.Channel(other.mailbox, other.mailbox.incoming())
    messages: list[int] = []
    events: list[str] = []
    with alarms(0.0003, ring):
        while "" not in events:
            try:
                for item in channel:
                    if isinstance(item, Event):
                        events += (item.reason,)
                    else:
                        messages += (number_of(item),)
            except Alarm:
                pass
    feeder.join()
    assert ring.count > 50
    assert messages == list(range(count))
    assert events == [*map(str, range(0, count, 10)), ""]


# Large frames


def capacity(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can resize pipes")
def test_a_pipe_has_room_for_a_large_frame_only_until_that_is_read(other: Other) -> None:
    before = capacity(other.ends.reading)
    other.pipe.write(message(0, 300_000))  # would wait forever
    assert capacity(other.ends.reading) > 300_000
    other.ends.widen()
    other.tell(delivered(1, 300_000))
    _, item = other.mailbox.take(other.mailbox.inbox, timeout=TIMEOUT)
    assert item.payload == [1, bytes(300_000)]
    assert capacity(other.pipe.ends.reading) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can resize pipes")
def test_a_pipe_in_which_there_is_more_is_not_narrowed_and_loses_nothing(other: Other) -> None:
    other.ends.widen()
    other.tell(delivered(1, 200_000), delivered(2, 200_000), delivered(3, 10))
    sizes = []
    for number, size in ((1, 200_000), (2, 200_000), (3, 10)):
        _, item = other.mailbox.take(other.mailbox.inbox, timeout=TIMEOUT)
        assert item.payload == [number, bytes(size)]
        sizes.append(capacity(other.pipe.ends.reading))
    assert sizes[0] > 200_000
    assert sizes[-1] == 64 * 1024


# Many that receive


@pytest.mark.parametrize(
    "receivers",
    [
        ("thread", "thread"),
        ("loop", "loop"),
        ("loop", "thread", "loop"),
        ("thread", "task"),
        ("loop", "task"),
        ("task", "task"),
        ("thread", "task", "cancelled"),
        ("loop", "task", "cancelled"),
    ],
    ids=" and ".join,
)
async def test_those_who_receive_from_one_inbox_share_it(
    other: Other, receivers: tuple[str, ...]
) -> None:
    """No item is lost or doubled, and nobody stays asleep when the channel closes."""
    other.start()
    box, count = other.mailbox, 3000
    taken: list[int] = []

    def receive() -> None:
        with contextlib.suppress(ChannelClosed):
            while True:
                taken.append(number_of(box.take(box.inbox)[1]))

    def loop() -> None:
        for item in process.Channel(box, box.inbox):
            taken.append(number_of(item))  # noqa: PERF401 - of several threads

    async def receive_async() -> None:
        with contextlib.suppress(ChannelClosed):
            while True:
                taken.append(number_of((await box.take_async(box.inbox))[1]))

    async def receive_cancelled() -> None:
        with contextlib.suppress(ChannelClosed):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.0005):
                        item = (await box.take_async(box.inbox))[1]
                        taken.append(number_of(item))

    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "thread": lambda: asyncio.to_thread(receive),
        "loop": lambda: asyncio.to_thread(loop),
        "task": receive_async,
        "cancelled": receive_cancelled,
    }
    frames = [ATTACHED, *map(relayed, range(count)), wire.CloseInboxFrame()]
    feeder = threading.Thread(target=lambda: [*map(other.tell, frames)])
    feeder.start()
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*(ways[receiver]() for receiver in receivers))
    feeder.join()
    assert sorted(taken) == list(range(count))
    assert not box.pipe.sleepers
    assert not box.pipe.waiters


def test_a_topic_is_kept_as_plain_text(other: Other) -> None:
    """The comparison of a subclass could run code where none may run."""

    class Topic(str):
        __slots__ = ()

    other.mailbox.listen(Topic("topic"))
    assert [type(topic) for topic in other.pipe.listeners] == [str]


def test_a_watch_that_was_interrupted_begins_again_and_what_the_first_is_shown_is_dropped(
    other: Other, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: wire.Frame) -> None:
        raise Alarm

    monkeypatch.setattr(other.pipe, "write", interrupted)
    with pytest.raises(Alarm):
        other.mailbox.watch("g")
    monkeypatch.undo()
    watch = other.mailbox.watch("g")
    shown = [wire.PresenceFrame("g", number, "joined", [(CLIENT, b"\1")]) for number in (1, 2)]
    other.tell(*shown)
    assert other.mailbox.take(watch, timeout=TIMEOUT)[1] == Presence("joined", PID(CLIENT), 1)
    assert (other.pipe.received, other.pipe.taken) == (2, sum(len(wire.pack(f)) for f in shown))
    with pytest.raises(TimeoutError):
        other.mailbox.take(watch, timeout=0)
    other.numbers()
    assert other.frames == [
        wire.UnwatchFrame("g", 1),
        wire.WatchFrame("g", 2),
    ]


async def test_what_a_thread_has_read_and_not_taken_wakes_the_event_loop(other: Other) -> None:
    """The loop began to wait while a thread was reading, and an exception ended that thread."""
    box, pipe = other.mailbox, other.pipe
    received = asyncio.ensure_future(box.take_async(box.inbox))
    await until(lambda: pipe.waiters, "the loop receives")
    pipe.data = b"".join(map(wire.pack, (ATTACHED, relayed(1))))  # without a byte in the pipe
    await asyncio.to_thread(pipe.wake)
    async with asyncio.timeout(TIMEOUT):
        _, item = await received
    assert number_of(item) == 1


async def test_a_thread_that_waits_goes_on_when_the_event_loop_is_closed(other: Other) -> None:
    """It reads for itself from then on."""
    box = other.mailbox

    def run_a_loop() -> None:
        async def receive() -> None:
            await box.take_async(box.inbox)

        asyncio.run(receive())

    first = asyncio.create_task(asyncio.to_thread(run_a_loop))
    await until(lambda: box.pipe.waiters, "the loop receives")
    while not first.done():  # as long as the thread is quicker the loop gets none
        second = asyncio.create_task(asyncio.to_thread(box.take, box.inbox))
        await until(lambda: box.pipe.sleepers, "the thread waits")
        other.tell(delivered(1))
        await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    other.tell(delivered(2))
    async with asyncio.timeout(TIMEOUT):
        assert (await second)[1].payload[0] == 2


async def test_a_deadline_and_a_cancellation_leave_nothing_behind(other: Other) -> None:
    box = other.mailbox
    for _ in range(20):
        with pytest.raises(TimeoutError):
            await box.take_async(box.inbox, box.events, timeout=0.001)
        task = asyncio.create_task(box.take_async(box.inbox))
        await until(lambda: box.pipe.waiters, "it waits")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(box.take, box.inbox, timeout=0.001)
    assert not box.pipe.waiters
    assert not box.pipe.sleepers


# In an event loop


async def test_what_is_written_in_an_event_loop_never_waits_and_keeps_its_order(
    other: Other,
) -> None:
    """Awaited or not, and the acknowledgements of what is received too."""
    box, wpipe = other.mailbox, other.pipe
    wpipe.attach(asyncio.get_running_loop())
    first = other.fill()
    awaited = [asyncio.create_task(wpipe.write_async(message(first + n))) for n in range(10)]
    await asyncio.sleep(0)
    for n in range(10, 20):
        wpipe.write(message(first + n, 50_000))
    other_thread = asyncio.create_task(asyncio.to_thread(wpipe.write, message(first + 20)))
    frames = [delivered(n, 1000) for n in range(100)]
    feeding = asyncio.create_task(asyncio.to_thread(other.tell, *frames))
    async with asyncio.timeout(TIMEOUT):
        for n in range(100):
            assert (await box.take_async(box.inbox))[1].payload[0] == n
        await feeding
        assert not any(task.done() for task in awaited), "nobody has read yet"
        other.start()
        await asyncio.gather(*awaited, other_thread)
        await wpipe.write_async(message(first + 21))
    numbers = await asyncio.to_thread(other.numbers)
    numbers.remove(first + 20)  # the other thread's: anywhere
    assert numbers == [n for n in range(first + 22) if n != first + 20]
    assert any(isinstance(frame, wire.AckFrame) for frame in other.frames)


async def test_what_waits_for_room_goes_out_before_what_is_written_when_the_loop_has_ended(
    other: Other,
) -> None:
    def live() -> None:
        async def handler() -> None:
            other.pipe.attach(asyncio.get_running_loop())
            for n in range(100):
                other.pipe.write(message(n, 10_000))

        asyncio.run(handler())
        other.start()
        other.pipe.write(message(100))

    await asyncio.to_thread(live)
    assert await asyncio.to_thread(other.numbers) == list(range(101))


# The two faces


async def test_coroutines_and_functions_get_messages_of_their_own_kind(other: Other) -> None:
    other.tell(ATTACHED, relayed(0), relayed(1), delivered(2), relayed(3))
    box = other.mailbox
    first = process.Channel(box, box.inbox).receive()
    assert (type(first), type(first.client)) == (Relayed, Client)
    channel: aio_process.Channel[Any] = aio_process.Channel(box, box.inbox)
    second, third = await channel.receive(), await channel.receive()
    assert isinstance(second, aio.Message)
    assert type(second.client) is aio.Client
    assert second.client.metadata == {"user": "ann"}
    assert (type(third), third.client) == (aio.Message, None)
    in_thread = await asyncio.to_thread(process.Channel(box, box.inbox).receive)
    assert (type(in_thread), type(in_thread.client)) == (Relayed, Client)
    other.tell(relayed(4), delivered(5))
    fourth, fifth = await channel.receive(), await channel.receive()
    assert number_of(fourth) == 4
    assert (type(fourth.client), type(fifth)) == (aio.Client, aio.Message)
