"""The two parsers that meet strangers: client bytes, and what a worker writes on its pipe.

The same examples each time; `scripts/fuzz` goes on with others for as long as one likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rooms
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rfc6455_client import close, frame, request
from support import processes, relay_to, room, until
from websockets.asyncio.client import ClientConnection, connect

from wsrelay import HostOptions, Node, WebSocketRelay, wire
from wsrelay.gateway.address import bind
from wsrelay.gateway.server import Server, ServerOptions
from wsrelay.node import WorkerProcess
from wsrelay.node.host import Incarnation, Intake, ProcessHost, Unfinished
from wsrelay.node.host import incarnation as incarnations
from wsrelay.node.host.family import Family
from wsrelay.node.process import SpawnOrder
from wsrelay.values.message import ExitError, ExitKind
from wsrelay.values.pid import PID
from wsrelay.values.rights import Rights

EXAMPLES = int(os.environ.get("WSRELAY_FUZZ_EXAMPLES", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 150,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Unhandled(logging.Handler):
    """What nobody caught: in the event loop, or in an application under the server."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.problems: list[str] = []
        loop.set_exception_handler(lambda _, context: self.problems.append(repr(context)))
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or "Traceback" in record.getMessage():
            self.problems.append(self.format(record))


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        runner.get_loop()
        yield runner


# A worker's bytes


TYPES: list[type[wire.Frame]] = list(typing.get_args(wire.FromWorker))
PIDS = ["{local@processes|1}", "{local@processes|2}", "{processes|2}", "{local@gateway|9}", "{x"]
TEXTS = [
    *PIDS,
    "",
    "name",
    "echo",
    "processes",
    "ws.send",
    "@reserved",
    "\ud7ff\x1b[2J\n",
    "n" * 2000,
]


def values(kind: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911 - a flat table
    """Values of a field's type, right ones and wrong ones."""
    data = st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
    text = st.sampled_from(TEXTS) | st.text(max_size=20)
    if typing.get_origin(kind) is typing.Annotated:
        return values(typing.get_args(kind)[0])
    if kind is msgspec.Raw or kind is bytes:
        encoded = st.builds(msgspec.msgpack.encode, data) | st.binary(max_size=20)
        sends = st.fixed_dictionaries(
            {"type": text, "data": text | st.binary(), "target_pid": text}
        )
        good = st.builds(msgspec.msgpack.encode, data | sends)
        content = st.one_of(good, good, good, encoded)
        return content if kind is bytes else st.builds(msgspec.Raw, content)
    if kind is int:
        return st.integers(-5, 60) | st.integers(-(2**63), 2**63 - 1)
    if kind is str:
        return text
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if kind == wire.WorkerError | None:
        return st.none() | st.builds(wire.WorkerError, st.sampled_from(list(ExitKind)), text, text)
    if typing.get_origin(kind) is list:
        return st.lists(text, max_size=5)
    if kind is bool:
        return st.booleans()
    if isinstance(kind, type) and issubclass(kind, wire.Frame):
        return frames(kind)
    return text | st.lists(text, max_size=5) | st.none()


def frames(kind: type[wire.Frame]) -> st.SearchStrategy[wire.Frame]:
    fields = msgspec.structs.fields(kind)
    return st.builds(kind, **{field.name: values(field.type) for field in fields})


def packed(content: Any) -> bytes:
    try:
        return wire.pack(content)
    except (ValueError, TypeError):  # no frame at all
        return b""


@st.composite
def bytes_of(draw: st.DrawFn, pieces: st.SearchStrategy[bytes]) -> list[bytes]:
    """A stream, perhaps broken somewhere, in chunks."""
    data = bytearray(b"".join(draw(st.lists(pieces, min_size=1, max_size=6))))
    for _ in range(draw(st.sampled_from([0, 0, 0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=10))
            case "repeat":
                data[at:at] = data[:at]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [bytes(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]


WORKER_BYTES = bytes_of(
    st.one_of(*2 * [st.builds(packed, frames(kind)) for kind in TYPES], st.binary(max_size=40))
)


@FUZZ
@given(WORKER_BYTES, st.booleans())
def test_whatever_a_worker_writes_the_node_goes_on(
    runner: asyncio.Runner, data: list[bytes], walled: bool
) -> None:
    runner.run(_written(data, Rights("processes") if walled else None))


async def _written(chunks: list[bytes], rights: Rights | None) -> None:
    """Let a worker that is only a pipe write this, beside one that is well-behaved."""
    unhandled = Unhandled(asyncio.get_running_loop())
    # Two is all that the host takes: what the bytes ask to be spawned is not.
    async with Node(hosts=[HostOptions(max_processes=2)]) as node:
        bad, good = (_pipe_only(node, PID(pid), rights) for pid in PIDS[:2])
        with bad.incarnation.worker_end as its_end, good.incarnation.worker_end as end:
            node.kernel.register("good", good.pid)
            for chunk in chunks:
                its_end.write_all(chunk)
            its_end.close_writing()
            await until(lambda: bad.incarnation.pipe._at_end, "all of it was read")
            end.write_all(wire.pack(wire.LookupFrame(7, "no such name")))
            reader = wire.to_worker()
            replies: list[Any] = []
            os.set_blocking(end.reading, False)

            def replied() -> bool:
                with contextlib.suppress(BlockingIOError):
                    replies.extend(frame for frame, _ in reader.feed(os.read(end.reading, 1 << 20)))
                return any(isinstance(f, wire.ReplyFrame) and f.ref == 7 for f in replies)

            if good.pid in node.kernel.processes:
                await until(replied, "the other worker was answered")
            for worker in (bad, good):
                worker.incarnation.failed(ExitError(ExitKind.KILLED, "SIGKILL"))
        assert not node.kernel.processes
        assert not node.kernel.relations
        assert not len(node.kernel.groups)
        assert not len(node.kernel.names)
    logging.getLogger().removeHandler(unhandled)
    assert not unhandled.problems


def _pipe_only(node: Node, pid: PID, rights: Rights | None) -> WorkerProcess:
    """A worker that the node knows and that has no OS process."""
    node.kernel.spawn(pid)
    engine = node.engine
    process = WorkerProcess(
        node.kernel.processes[pid],
        HostOptions(),
        SpawnOrder("none", b"", plain=False),
        parent=None,
        numbers=node.numbers,
        signal=engine.signal,
        stopping=engine._stopping,
    )
    process.rights = rights
    process.runs_as(engine._incarnation(process))
    process.incarnation.pipe.begin()
    engine.processes[pid] = engine.endpoints[pid] = process
    return process


# A template's bytes and descriptors


TEMPLATE_BYTES = bytes_of(
    st.one_of(
        *2 * [st.builds(packed, frames(kind)) for kind in typing.get_args(wire.FromTemplate)],
        *2
        * [st.builds(wire.pack, st.builds(wire.ForkFailedFrame, st.integers(1, 3), st.just("no")))],
        st.binary(max_size=40),
    )
)
NAMED = st.sampled_from(["child", "node", "init"])


@FUZZ
@given(
    TEMPLATE_BYTES,
    st.lists(st.tuples(st.integers(1, 3), NAMED, st.booleans()), max_size=3),
    st.booleans(),
)
@pytest.mark.skipif(sys.platform != "linux", reason="there are no pidfds")
def test_whatever_a_template_writes_the_node_goes_on(
    runner: asyncio.Runner,
    data: list[bytes],
    forked: list[tuple[int, str, bool]],
    loaded: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch, subprocess.Popen(["sleep", "60"]) as child:
        patch.setattr(incarnations, "_PATIENCE", 0.01)  # for the exit status, which nobody tells
        try:
            runner.run(_told(child.pid, data, forked, loaded=loaded))
        finally:
            child.kill()


async def _told(
    child: int,
    chunks: list[bytes],
    forked: list[tuple[int, str, bool]],
    *,
    loaded: bool,
) -> None:
    """Let a template that is only a pipe write this; two workers wait for it.

    `forked` are numbers, what is said to be their process, and whether that has a pidfd.
    """
    unhandled = Unhandled(asyncio.get_running_loop())
    before = _open_descriptors()
    control, theirs = socket.socketpair()
    told, telling = os.pipe()
    report, its_report = os.pipe()
    lifeline, its_lifeline = socket.socketpair()
    results: list[Any] = []
    os_pids = {"child": child, "node": os.getpid(), "init": 1}
    said = [wire.pack(wire.LoadedFrame())] if loaded else []
    said += [wire.pack(wire.ForkedFrame(ref, os_pids[named], has)) for ref, named, has in forked]
    said += chunks
    with theirs, its_lifeline:
        host = ProcessHost(HostOptions())
        host._connect(control, told, report, lifeline)
        host._family = Family(os.getpid(), os.getpid(), None)
        for ref, pid in enumerate(PIDS[:2], 1):
            host.launch(
                Incarnation(
                    PID(pid),
                    ref,
                    HostOptions(),
                    log=Intake(pid, 100),
                    received=lambda _: None,
                    exited=results.append,
                    about=dict,
                    unfinished=Unfinished(),
                )
            )
        for frame in said:
            with contextlib.suppress(OSError):  # it was ended
                os.write(telling, frame)
            await asyncio.sleep(0)
        os.close(telling)
        await until(lambda: len(results) == 2, "the end of both is told")
        await until(lambda: host._control is None, "it is lost")
        host.close()
    os.close(its_report)
    assert not host._workers
    assert _open_descriptors() == before
    logging.getLogger().removeHandler(unhandled)
    assert not unhandled.problems


def _open_descriptors() -> int:
    return len([*Path("/dev/fd").iterdir()])


# A client's bytes


class Place:
    """A server with an echo behind it, and a healthy client."""

    async def start(self) -> None:
        self.node = Node(hosts=[processes()])
        self.node.start()
        pid = self.node.spawn(room(rooms.echo))
        self.process = self.node.engine.processes[pid]
        app = WebSocketRelay(relay_to(pid), node=self.node)
        listener = bind("127.0.0.1", 0)
        [self.address] = listener.names
        self.server = Server(app, listener, ServerOptions(max_message_size=5000))
        await self.server.start()
        url = f"ws://127.0.0.1:{self.address[1]}"
        self.healthy: ClientConnection = await connect(url, compression=None, proxy=None)
        self.unhandled = Unhandled(asyncio.get_running_loop())

    async def stop(self) -> None:
        await self.healthy.close()
        self.server.stop_accepting()
        await self.node.aclose()
        await self.server.aclose()
        logging.getLogger().removeHandler(self.unhandled)


@pytest.fixture(scope="module")
def place(runner: asyncio.Runner) -> Iterator[Place]:
    place = Place()
    runner.run(place.start())
    yield place
    runner.run(place.stop())


HTTP = st.sampled_from(
    [
        request(),
        request(),
        request(),
        request(Sec_WebSocket_Version="12"),
        request(Upgrade="h2c"),
        request(Content_Length="5"),
        request(Transfer_Encoding="chunked"),
        request(X_WS_Relay='{"target_pid": "{x|1}"}'),
        request(Cookie="x" * 3000),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%0a%ff HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ]
)
FRAMES = st.builds(
    frame,
    st.integers(0, 15),
    st.binary(max_size=130) | st.text(max_size=40).map(str.encode) | st.just(bytes(6000)),
    fin=st.booleans(),
    masked=st.sampled_from([True, True, True, False]),
    rsv=st.sampled_from([0, 0, 0, 0, 1, 4]),
) | st.builds(close, st.integers(0, 5000))


@FUZZ
@given(
    HTTP,
    bytes_of(FRAMES | st.binary(max_size=30)),
    bytes_of(HTTP),
    st.sampled_from(["close", "half", "reset", "wait"]),
    st.booleans(),
)
def test_whatever_a_client_sends_the_server_goes_on(
    runner: asyncio.Runner,
    place: Place,
    head: bytes,
    after: list[bytes],
    broken: list[bytes],
    end: str,
    upgraded: bool,
) -> None:
    chunks = [head, *after] if upgraded else broken
    runner.run(_sent(place, chunks, end))


async def _sent(place: Place, chunks: list[bytes], end: str) -> None:
    reader, writer = await asyncio.open_connection(*place.address[:2])
    try:
        for i, chunk in enumerate(chunks):
            writer.write(chunk)
            if i == 0 and chunk.startswith(b"GET /chat") and b"13" in chunk:
                with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, OSError):
                    async with asyncio.timeout(0.05):  # a broken head may have no answer
                        await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0)
        if end == "half":
            writer.write_eof()
        if end == "reset":
            writer.transport.abort()
        if end in ("half", "wait"):
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(0.02):
                    await reader.read()
    except OSError:
        pass  # it was thrown out
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    async with asyncio.timeout(20):
        await place.healthy.send("well?")
        assert await place.healthy.recv() == "well?"
    await until(lambda: len(place.node.connections) == 1, "the connection has ended")
    assert len(place.process.clients) == 1
    assert not place.unhandled.problems
