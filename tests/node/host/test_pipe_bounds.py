"""What is on its way between the node and a worker is bounded."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
from one_node import left_as_found
from support import end_of, until

from wsrelay import ExitKind, Node, PayloadError, process, wire
from wsrelay.errors import WireError
from wsrelay.node.host import NodePipe
from wsrelay.values.pid import PID
from wsrelay.values.sizes import ITEM
from wsrelay.wire.pipe_pair import Duplex

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(shared: Node) -> AsyncIterator[Node]:
    async with left_as_found(shared):
        yield shared


MB = 1024 * 1024
ME = PID("{local@processes|1}")


def deliver(size: int) -> wire.DeliverFrame:
    """A frame of just so many bytes."""
    frame = wire.DeliverFrame("t", str(ME), msgspec.msgpack.encode(bytes(size - 1000)))
    return wire.DeliverFrame(
        "t",
        str(ME),
        msgspec.msgpack.encode(bytes(2 * size - 1000 - len(wire.pack(frame)))),
    )


@pytest.fixture
def flooded() -> list[bool]:
    """What the pipe has told of an overflow."""
    return []


@pytest.fixture
async def pipe(flooded: list[bool]) -> AsyncIterator[NodePipe]:
    """A pipe to a worker that takes nothing."""
    ours, theirs = Duplex.pair()
    pipe = NodePipe(ours, lambda _: None, lambda _: None, lambda: flooded.append(True))
    with theirs:
        yield pipe
        pipe.close()


KB = 1024


async def test_the_window_and_one_frame_are_on_their_way_and_the_rest_waits(pipe: NodePipe) -> None:
    assert len(wire.pack(deliver(4 * KB))) == 4 * KB
    for _ in range(31):
        pipe.queue(deliver(4 * KB))
    assert (pipe._in_flight, pipe.backlog) == (124 * KB, 0), "below the window"
    pipe.queue(deliver(4 * KB))
    assert (pipe._in_flight, pipe.backlog) == (128 * KB, 0), "at the window"
    pipe.queue(deliver(4 * KB))
    assert (pipe._in_flight, pipe.backlog) == (128 * KB, 4 * KB + ITEM), "above it"
    pipe.taken(4 * KB)
    assert (pipe._in_flight, pipe.backlog) == (128 * KB, 0)


async def test_what_clients_say_keeps_its_place_and_the_window() -> None:
    """Whether or not the pipe is full, or something waits for room at the worker."""
    ours, theirs = Duplex.pair()
    pipe = NodePipe(ours, lambda _: None, lambda _: None, lambda: None)
    frames = [wire.DeliverFrame(f"{number}", str(ME), bytes(4000)) for number in range(60)]
    for number, frame in enumerate(frames):
        if number % 3:
            assert pipe.relay(wire.pack(frame)) is not pipe.full
        else:
            pipe.queue(frame)
    assert pipe.queued == len(frames)
    assert wire.WINDOW <= pipe._in_flight < wire.WINDOW + 4 * KB
    assert pipe.full
    reader, taken, seen = wire.to_worker(), 0, 0
    with theirs:
        while seen < len(frames):
            for arrived, size in reader.feed(os.read(theirs.reading, MB)):
                assert arrived == frames[seen]
                seen, taken = seen + 1, taken + size
            pipe.taken(taken)
            pipe._flush()
        assert (pipe._in_flight, pipe.backlog) == (0, 0)
        pipe.close()
        assert pipe.relay(b"nobody reads it, and nobody waits for its room")


async def test_what_a_client_says_does_not_overtake_what_the_full_pipe_left() -> None:
    ours, theirs = Duplex.pair()
    pipe = NodePipe(ours, lambda _: None, lambda _: None, lambda: None)
    frames = [wire.DeliverFrame(f"{number}", str(ME), bytes(4000)) for number in range(25)]
    for frame in frames[:-1]:
        pipe.relay(wire.pack(frame))
    assert pipe._outgoing
    assert pipe._in_flight < wire.WINDOW
    reader = wire.to_worker()
    with theirs:
        arrived = reader.feed(os.read(theirs.reading, MB))
        assert pipe.relay(wire.pack(frames[-1])), "there is room in the pipe again"
        while len(arrived) < len(frames):
            pipe._flush()
            arrived += reader.feed(os.read(theirs.reading, MB))
        pipe.close()
    assert [frame for frame, _ in arrived] == frames


async def test_nothing_is_received_behind_garbage_whatever_is_called_then() -> None:
    ours, theirs = Duplex.pair()
    received: list[wire.FromWorker] = []
    problems: list[str] = []
    with theirs:
        pipe = NodePipe(ours, received.append, problems.append, lambda: None)
        theirs.write_all(b"\0\0\0\1\xc1")
        await until(lambda: problems, "the garbage was noticed")
        theirs.write_all(wire.pack(wire.ReadyFrame()))
        pipe._readable()  # as uvloop may do it once more
        pipe.close()
    assert (received, len(problems)) == ([], 1)


async def test_every_read_that_brings_data_is_counted() -> None:
    """A process's log records are put behind what it had printed by the same read."""
    ours, theirs = Duplex.pair()
    received: list[wire.FromWorker] = []
    pipe = NodePipe(ours, received.append, lambda _: None, lambda: None)
    with theirs:
        for number in range(1, 4):
            theirs.write_all(number * wire.pack(wire.LogFrame(20, "name", "text")))
            await until(lambda: len(received) == number * (number + 1) / 2)  # noqa: B023 - at once
            assert pipe.reads == number
        pipe.close()


async def test_what_is_relayed_to_a_worker_that_is_dying_goes_nowhere() -> None:
    ours, theirs = Duplex.pair()
    pipe = NodePipe(ours, lambda _: None, lambda _: None, lambda: None)
    theirs.close()
    assert pipe.relay(b"its exit is announced by the kernel")
    assert (pipe.queued, pipe._outgoing) == (1, 0)
    pipe.close()


async def test_one_frame_may_be_as_large_as_it_likes(pipe: NodePipe) -> None:
    pipe.queue(deliver(127 * KB))
    pipe.queue(deliver(MB))
    assert (pipe._in_flight, pipe.backlog) == (127 * KB + MB, 0)
    pipe.queue(deliver(4 * KB))
    assert pipe.backlog == 4 * KB + ITEM


async def test_clients_wait_from_64_kilobytes_of_backlog_on(pipe: NodePipe) -> None:
    pipe.queue(deliver(128 * KB))
    for _ in range(15):
        pipe.queue(deliver(4 * KB - ITEM))
    seen = [pipe.full]
    pipe.queue(deliver(4 * KB - ITEM - 1))
    seen.append(pipe.full)
    pipe.queue(deliver(4 * KB))
    seen.append(pipe.full)
    pipe.taken(128 * KB)
    seen.append(pipe.full)
    assert seen == [False, False, True, False], "below, a byte below, above, and with room again"


async def test_small_frames_count_as_what_they_cost(pipe: NodePipe) -> None:
    """Those that wait for room, mail among them, and answers that nobody reads."""
    pipe.queue(deliver(MB))
    frame = wire.DeliverFrame("t", str(ME), msgspec.Raw(b"\xc0"))
    size = len(wire.pack(frame)) + ITEM
    for _ in range(100):
        pipe.queue(frame, mail=True)
    assert (pipe.backlog, pipe.mailbox) == (100 * size, 100 * size)
    pipe.taken(MB)
    assert (pipe.backlog, pipe.mailbox) == (0, 0)
    reply = wire.ReplyFrame(1)
    for _ in range(100):
        pipe.post(reply)
    assert pipe._posted == 100 * (len(wire.pack(reply)) + ITEM), "behind what is being read"


async def test_who_waits_for_room_and_leaves_is_forgotten(pipe: NodePipe) -> None:
    told: list[str] = []
    for _ in range(50):
        pipe.queue(deliver(4 * KB))
    for _ in range(3):
        pipe.when_room("one", lambda: told.append("one"))
        pipe.when_room("other", lambda: told.append("other"))
    pipe.forget("one")
    assert len(pipe._when_room) == 1
    pipe.taken(64 * KB)
    assert told == ["other"]


@pytest.mark.parametrize("size", [-1, 4 * KB + 1, 1 << 60])
async def test_no_more_is_taken_than_was_sent(pipe: NodePipe, size: int) -> None:
    pipe.queue(deliver(4 * KB))
    with pytest.raises(WireError, match="were acknowledged, but 4096 were sent"):
        pipe.taken(size)
    pipe.taken(4 * KB)
    assert pipe._in_flight == 0


async def test_what_a_worker_writes_behind_a_hold_is_not_lost_at_its_release() -> None:
    """Whatever the event loop does first then, to read on or to take in what was held."""
    ours, theirs = Duplex.pair()
    received: list[wire.FromWorker] = []
    problems: list[str] = []

    def receive(frame: wire.FromWorker) -> None:
        received.append(frame)
        if len(received) == 1:
            held.hold("a client that does not read")

    with theirs:
        held = NodePipe(ours, receive, problems.append, lambda: None)
        frames = [wire.AckFrame(number) for number in range(4)]
        theirs.write_all(b"".join(map(wire.pack, frames[:2])))
        await until(lambda: received, "it is held behind the first")
        theirs.write_all(b"".join(map(wire.pack, frames[2:])))
        held.release("a client that does not read")
        held._readable()  # as uvloop does it
        await until(lambda: len(received) == len(frames) or problems, "all is there")
        held.close()
    assert (received, problems) == (frames, [])


@pytest.mark.parametrize("held", [False, True])
async def test_garbage_right_behind_a_frame_is_noticed_at_once(*, held: bool) -> None:
    ours, theirs = Duplex.pair()
    received: list[wire.FromWorker] = []
    problems: list[str] = []
    with theirs:
        pipe = NodePipe(ours, received.append, problems.append, lambda: None)
        theirs.write_all(
            wire.pack(wire.AckFrame(0)) + wire.pack(wire.ReadyFrame()) + b"\0\0\0\1\xc1"
        )
        if held:
            pipe.hold("token")
            pipe._readable()  # as if it had been read before the hold
            assert (received, problems) == ([], []), "nothing is received while it is held"
            pipe.release("token")
        await until(lambda: problems, "the garbage was noticed")
        assert received == [wire.AckFrame(0), wire.ReadyFrame()]
        assert ["1 bytes are not a frame" in problem for problem in problems] == [True]
        pipe.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can resize pipes")
async def test_the_pipes_of_a_worker_are_wide_only_while_a_large_frame_is_in_them() -> None:
    ours, theirs = Duplex.pair()
    received: list[wire.FromWorker] = []
    problems: list[str] = []
    frame = wire.SendFrame("room", "topic", bytes(300 * KB))
    with theirs:
        pipe = NodePipe(ours, received.append, problems.append, lambda: None)
        before = fcntl.fcntl(ours.writing, fcntl.F_GETPIPE_SZ)
        pipe.queue(deliver(4 * KB))
        assert fcntl.fcntl(ours.writing, fcntl.F_GETPIPE_SZ) == before
        pipe.queue(deliver(300 * KB))
        assert fcntl.fcntl(ours.writing, fcntl.F_GETPIPE_SZ) > 300 * KB
        assert not pipe._out, "all of it is in the pipe"
        theirs.widen()
        theirs.write_all(wire.pack(frame))
        await until(lambda: received or problems, "it is read")
        assert (received, problems) == ([frame], [])
        assert fcntl.fcntl(ours.reading, fcntl.F_GETPIPE_SZ) == before
        pipe.close()


async def test_what_may_overtake_waits_for_no_room(pipe: NodePipe) -> None:
    for _ in range(100):
        pipe.queue(deliver(4 * KB))
    before = pipe.backlog
    pipe.post(wire.SignalFrame("CANCEL", str(ME), "now"))
    assert pipe.backlog == before


@pytest.mark.parametrize(("beyond", "fits"), [(-1, True), (0, True), (1, False)])
def test_a_message_of_a_process_has_at_most_64_megabytes(beyond: int, *, fits: bool) -> None:
    def send(size: int) -> bytes:
        content = msgspec.msgpack.encode(bytes(size))
        return wire.pack_request(wire.SendFrame("room", "topic", content))

    overhead = len(send(MB)) - MB
    size = wire.MAX_FRAME - overhead + beyond
    assert wire.MAX_FRAME == 64 * MB
    if fits:
        assert len(send(size)) == wire.MAX_FRAME + beyond
    else:
        with pytest.raises(PayloadError, match="are more than a message may hold"):
            send(size)


def watch_large(size: int) -> list[int]:
    """The sizes of what three processes return, who are watched and run by `exec`."""

    def give(size: int) -> bytes:
        return bytes(size)

    for _ in range(2):
        process.spawn_monitored(give, None, size)
    sizes = [len(process.exec(give, None, size))]
    time.sleep(0.3)  # they wait for it together
    for event in process.events():
        assert event.result is not None
        sizes.append(len(event.result.value))
        if len(sizes) == 3:
            return sizes
    return sizes


@pytest.mark.parametrize("size", [17 * MB, 64 * MB - 300])
async def test_results_of_any_size_end_nobody_who_asked_for_them(node: Node, size: int) -> None:
    """All that a process can return arrives, also where the node adds to it."""
    result = await end_of(node, watch_large, size)
    assert (result.error, result.value) == (None, [size] * 3)


async def test_replies_that_nobody_reads_are_bounded_and_a_single_one_is_not(
    pipe: NodePipe,
    flooded: list[bool],
) -> None:
    pipe.post(wire.ReplyFrame(1, bytes(17 * MB)))
    for _ in range(1000):
        pipe.post(wire.SignalFrame("EXIT", str(ME), "", wire.PackedResult(bytes(MB // 8))))
    assert not flooded
    for _ in range(17):
        pipe.post(wire.ReplyFrame(1, bytes(MB)))
    assert flooded == [True]


def raise_at_length() -> None:
    raise ValueError("x" * 70 * MB)


async def test_an_error_s_text_is_cut_and_the_process_ends_with_that_error(node: Node) -> None:
    """It would fit into no frame, and the end of the process would not be told at all."""
    error = (await end_of(node, raise_at_length)).error
    assert error is not None
    assert error.kind == ExitKind.ERROR
    assert error.message.startswith("ValueError: xxx")
    assert error.traceback is not None
    assert len(error.message) < MB
