"""Fault x place: a healthy room beside it is not touched, clients are told, nothing is left.

One row is one test. `Scene` is a node with a healthy room and the room that the fault hits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import client, closed, drop_all, fronted, processes, received, relay_to, room, until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from wsrelay import (
    ExitKind,
    HostFailed,
    HostOptions,
    Isolation,
    Node,
    Result,
    WebSocketRelay,
    process,
    wire,
)
from wsrelay.values import current
from wsrelay.values.pid import PID

pytestmark = pytest.mark.anyio

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has that")


# The rooms that faults hit


def victim() -> None:
    """Do to itself what its client says."""
    for message in process.inbox():
        if message.topic == "ws.message":
            _suffer(message.payload["data"], message.sender)


def _suffer(order: str, sender: PID) -> None:
    pipe = current.caller().pipe  # type: ignore[attr-defined]
    match order:
        case "spin":
            while True:
                pass
        case "half a frame":
            data = wire.pack(wire.RegisterFrame(1, "name", "{local@processes|1}"))
            pipe.ends.write_all(data[: len(data) // 2])
            os._exit(3)
        case "half a frame, killed":
            pipe.ends.write_all(wire.pack(wire.ReadyFrame())[:2])
            os.kill(os.getpid(), signal.SIGKILL)
        case "garbage":
            pipe.ends.write_all(os.urandom(100_000))
            time.sleep(60)
        case "forged":
            frames = (
                wire.AckFrame(1 << 40),
                wire.RelateFrame("monitor", "{"),
                wire.JoinGroupFrame("group", "name"),
                wire.RegisterFrame(1, "name", "{oops"),
                wire.DrainFrame(1, "{local"),
                wire.SpawnFrame("{local@processes|1}", "processes", "spam:eggs", b""),
                wire.SpawnFrame(process.pid(), "processes", "spam:eggs", b""),
                wire.DoneFrame(b"\xc0", None, 0, []),
            )
            number = int(process.inbox().receive().payload["data"])
            for _ in range(2):
                pipe.ends.write_all(wire.pack(frames[number]))
            time.sleep(60)
        case "huge length":
            pipe.ends.write_all(b"\xff" * 64)
            time.sleep(60)
        case "close the pipe":
            pipe.ends.close()
            time.sleep(60)
        case "exhaust":
            with contextlib.suppress(OSError):
                while True:
                    os.dup(1)
            answer = {"type": "text", "data": "none left"}
            process.send(sender, "ws.send", answer)
        case "spawn":
            process.spawn_monitored(victim)
            result = process.events().receive(10).result
            kind = result.error.kind if result and result.error else "none"
            process.send(sender, "ws.send", {"type": "text", "data": str(kind)})
        case "flood":
            while True:
                process.send("healthy", "flood", bytes(10_000))
        case _:
            process.send(sender, "ws.send", {"type": "text", "data": order})


class Scene:
    """A node, its healthy room with a client, and the fault's room with another."""

    def __init__(
        self,
        node: Node,
        url: str,
        healthy: ClientConnection,
        hit: ClientConnection,
        pid: PID,
        connection: PID,
    ) -> None:
        self.node = node
        self.url = url
        self.healthy = healthy
        self.hit = hit
        self.pid = pid
        """The process that is hit."""
        self.connection = connection
        """Its client."""

    def os_pid(self) -> int:
        os_pid = self.node.workers[self.pid]
        assert os_pid is not None
        return os_pid

    async def is_well(self) -> None:
        """The healthy room answers, and new rooms come to life."""
        await self.healthy.send("well?")
        assert await received(self.healthy) == "well?"
        fresh = self.node.spawn(room("echo"))
        assert await self.node.started(fresh) is None
        self.node.terminate(fresh)

    async def is_over(self) -> None:
        """Nothing is left of what the fault hit."""
        await until(lambda: self.pid not in self.node.workers, "the process is gone")
        await until(lambda: len(self.node.connections) == 1, "its connection is gone")
        assert len(self.node.kernel.names) == 1
        assert self.node.engine.processes[self.node.lookup("healthy")].pipe.backlog == 0


@contextlib.asynccontextmanager
async def staged(**options: Any) -> AsyncIterator[Scene]:
    async with Node(hosts=[processes(**options)]) as node:
        await node.loaded()
        healthy, hit = node.spawn(room("echo")), node.spawn(victim)
        node.register("healthy", healthy)
        app = _switch(node, healthy, hit)
        async with (
            fronted(app, ping_interval=0.5, ping_timeout=0.5) as (_, url),
            client(f"{url}/healthy") as one,
        ):
            [first] = node.connections
            async with client(f"{url}/hit") as other:
                [second] = node.connections - {first}
                yield Scene(node, url, one, other, hit, second)


def _switch(node: Node, healthy: PID, hit: PID) -> Any:
    one, other = (WebSocketRelay(relay_to(pid), node=node) for pid in (healthy, hit))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (other if scope["path"] == "/hit" else one)(scope, receive, send)

    return app


# kill -9


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "computing"])
async def test_kill_9_of_a_worker(*, busy: bool) -> None:
    async with staged() as scene:
        if busy:
            await scene.hit.send("spin")
        os.kill(scene.os_pid(), signal.SIGKILL)
        assert await closed(scene.hit) == (1011, "target process killed (SIGKILL)")
        await scene.is_over()
        await scene.is_well()


async def test_kill_9_of_a_template() -> None:
    async with staged() as scene:
        template = scene.node.templates["processes"]
        assert template is not None
        os.kill(template, signal.SIGKILL)
        assert await closed(scene.hit) == (1011, "target process killed (template lost)")
        assert await closed(scene.healthy) == (1011, "target process killed (template lost)")
        await until(lambda: not scene.node.workers, "its workers are gone with it")
        fresh = scene.node.spawn(room("echo"))
        assert await scene.node.started(fresh) is None, "there is a new one"


async def test_kill_9_of_a_template_that_is_asked_for_many_workers() -> None:
    async with staged() as scene:
        template = scene.node.templates["processes"]
        assert template is not None
        results: list[Result] = []
        for _ in range(20):
            scene.node.when_ended(scene.node.spawn(room("echo")), results.append)
        os.kill(template, signal.SIGKILL)
        await until(lambda: len(results) == 20, "the end of each is told")
        assert {r.error.kind for r in results if r.error} == {ExitKind.TEMPLATE_LOST}


# SIGSTOP


async def test_sigstop_of_a_worker_keeps_its_client_and_goes_on_with_sigcont() -> None:
    async with staged() as scene:
        os.kill(scene.os_pid(), signal.SIGSTOP)
        await scene.hit.send("later")
        await scene.is_well()
        await asyncio.wait_for(await scene.hit.ping(), 5)
        os.kill(scene.os_pid(), signal.SIGCONT)
        assert await received(scene.hit) == "later"


async def test_a_stopped_worker_that_is_cancelled_is_killed_after_its_stop_timeout() -> None:
    async with staged(stop_timeout=0.2) as scene:
        os.kill(scene.os_pid(), signal.SIGSTOP)
        scene.node.cancel(scene.pid)
        assert await closed(scene.hit) == (1011, "target process killed (SIGKILL)")
        await scene.is_over()
        await scene.is_well()


async def test_sigstop_of_a_template_stops_no_worker_and_bounds_every_start() -> None:
    async with staged(start_timeout=1.0) as scene:
        template = scene.node.templates["processes"]
        assert template is not None
        os.kill(template, signal.SIGSTOP)
        try:
            await scene.healthy.send("well?")
            assert await received(scene.healthy) == "well?"
            late = scene.node.spawn(room("echo"))
            assert "did not start within its start timeout" in (
                await scene.node.started(late) or ""
            )
        finally:
            os.kill(template, signal.SIGCONT)
        await scene.is_well()


# Exit in mid-frame, garbage on the pipe


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("half a frame", "target process crashed"),
        ("half a frame, killed", "target process killed (SIGKILL)"),
        ("garbage", "target process crashed"),
        ("huge length", "target process crashed"),
    ],
)
async def test_what_a_worker_breaks_on_its_pipe_ends_it_alone(order: str, reason: str) -> None:
    async with staged() as scene:
        await scene.hit.send(order)
        assert await closed(scene.hit) == (1011, reason)
        await scene.is_over()
        await scene.is_well()


@pytest.mark.parametrize("number", range(8))
async def test_frames_that_no_worker_of_ours_writes_are_garbage_too(number: int) -> None:
    async with staged() as scene:
        await scene.hit.send("forged")
        await scene.hit.send(str(number))
        assert await closed(scene.hit) == (1011, "target process crashed")
        await scene.is_over()
        await scene.is_well()


async def test_a_worker_that_closes_its_pipe_keeps_nobody() -> None:
    async with staged() as scene:
        await scene.hit.send("close the pipe")
        await scene.is_well()
        scene.node.terminate(scene.pid)
        assert await closed(scene.hit) == (1011, "target process killed (SIGKILL)")
        await scene.is_over()


# Full pipes


async def test_a_worker_that_does_not_read_stops_its_own_client_only() -> None:
    async with staged() as scene:
        await scene.hit.send("spin")
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(0.3):
                    await scene.hit.send(bytes(100_000))
        assert scene.node.engine.processes[scene.pid].pipe.full
        await scene.is_well()
        scene.node.terminate(scene.pid)
        await until(lambda: scene.pid not in scene.node.workers, "it is gone")
        scene.hit.transport.abort()
        await scene.is_over()


async def test_a_worker_that_floods_another_ends_that_one_loudly() -> None:
    async with staged(mailbox=1_000_000) as scene:
        healthy = scene.node.lookup("healthy")
        worker = scene.node.workers[healthy]
        assert worker is not None
        os.kill(worker, signal.SIGSTOP)  # it reads nothing
        await scene.hit.send("flood")
        assert await closed(scene.healthy) == (1011, "target process killed (mailbox overflow)")
        scene.node.terminate(scene.pid)


async def test_a_client_that_does_not_read_is_given_up_and_its_room_goes_on() -> None:
    async with staged() as scene, client(f"{scene.url}/hit") as other:
        sock = scene.hit.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        scene.hit.transport.pause_reading()
        slow = scene.connection
        big = {"type": "binary", "data": bytes(1_000_000)}
        for _ in range(20):
            scene.node.send(slow, "ws.send", big)
        await until(lambda: slow not in scene.node.connections, "it is given up")
        await other.send("and you?")
        assert await received(other) == "and you?"
        await scene.is_well()
        scene.hit.transport.abort()


# Garbage from a client


@pytest.mark.parametrize(
    "data",
    [os.urandom(10_000), b"\x00" * 10_000, b"\xff" * 10_000, b"GET / HTTP/1.1\r\n\r\n" * 100],
    ids=["random", "zeros", "ones", "requests"],
)
async def test_garbage_from_a_client_ends_its_connection(data: bytes) -> None:
    async with staged() as scene:
        scene.hit.transport.write(data)
        with contextlib.suppress(ConnectionClosed):
            await asyncio.wait_for(scene.hit.recv(), 10)
        await until(lambda: len(scene.node.connections) == 1, "it is gone")
        assert scene.pid in scene.node.workers, "the room is another matter"
        await scene.is_well()


# A client that vanishes without FIN


@linux
async def test_an_idle_client_that_vanishes_is_noticed_by_its_pongs() -> None:
    async with staged() as scene:
        drop_all(scene.hit.transport.get_extra_info("socket"))
        await until(lambda: len(scene.node.connections) == 1, "it is gone")
        await scene.is_well()
        scene.hit.transport.abort()


# Clocks that jump


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0], ids=["ahead", "back"])
async def test_a_wall_clock_that_jumps_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    async with staged(stop_timeout=5.0) as scene:
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        await scene.is_well()
        await asyncio.wait_for(await scene.hit.ping(), 5)
        await scene.hit.send("still here")
        assert await received(scene.hit) == "still here"
        scene.node.cancel(scene.pid)
        assert await closed(scene.hit) == (1000, "target process exited")
        await scene.is_over()


# Descriptors


async def test_a_worker_without_descriptors_still_talks() -> None:
    async with staged() as scene:
        await scene.hit.send("exhaust")
        assert await received(scene.hit) == "none left"
        await scene.is_well()


@contextlib.contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Let this process open so many more and no others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 5, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(spare):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


@linux
async def test_a_node_without_descriptors_refuses_spawns_and_goes_on() -> None:
    async with staged() as scene:
        with few_descriptors(1):
            with pytest.raises(HostFailed, match="no process can be started: Too many open files"):
                scene.node.spawn(room("echo"))
            await scene.healthy.send("well?")
            assert await received(scene.healthy) == "well?"
        assert len(scene.node.kernel.processes) == 4, "two rooms, two connections"
        await scene.is_well()


@linux
async def test_a_worker_that_spawns_is_told_that_there_are_no_descriptors() -> None:
    async with staged() as scene:
        with few_descriptors(1):
            await scene.hit.send("spawn")
            assert await received(scene.hit) == "start_failed"
        await scene.is_well()


@linux
async def test_a_pidfd_that_finds_no_room_is_no_loss() -> None:
    """The pipe was made, but the pidfd that comes from the template has no place."""
    async with staged() as scene:
        results: list[Result] = []
        pid = scene.node.spawn(room("echo"))
        scene.node.when_ended(pid, results.append)
        with few_descriptors(0):
            await until(lambda: scene.node.workers[pid], "it is forked")
        assert scene.node.engine.processes[pid].incarnation._pidfd is None
        assert await scene.node.started(pid) is None
        scene.node.terminate(pid)
        await until(lambda: results, "its end is told by the template")
        await scene.is_well()


@linux
async def test_a_template_that_cannot_be_started_is_told() -> None:
    async with Node(hosts=[processes()]) as node:
        results: list[Result] = []
        with few_descriptors(6):
            node.when_ended(node.spawn(room("echo")), results.append)
        await until(lambda: results, "its end is told")
        error = results[0].error
        assert error is not None
        assert error.kind is ExitKind.START_FAILED
        assert error.message == "the template cannot be started: Too many open files"
        assert await node.started(node.spawn(room("echo"))) is None


# A system that refuses to fork


@linux
async def test_a_fork_that_fails_with_eagain_is_told_and_the_next_one_works(
    tmp_path: Path,
) -> None:
    """The template's user has no process left, until there is a file."""
    script = tmp_path / "room.py"
    script.write_text(
        "import os, resource\n"
        "fork = os.fork\n"
        "def refuse():\n"
        f"    if os.path.exists({str(tmp_path / 'refuse')!r}):\n"
        "        raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "    return fork()\n"
        "os.fork = refuse\n"
        "def handler():\n"
        "    from wsrelay import process\n"
        "    for _ in process.inbox(): pass\n"
    )
    async with Node(hosts=[HostOptions(targets=(str(script),), stop_timeout=2.0)]) as node:
        assert await node.started(node.spawn(str(script))) is None
        (tmp_path / "refuse").touch()
        said = await node.started(node.spawn(str(script)))
        assert said is not None
        assert "the operating system refused a fork" in said
        (tmp_path / "refuse").unlink()
        assert await node.started(node.spawn(str(script))) is None


@linux
@pytest.mark.skipif(os.getuid() != 0, reason="root is not counted, so a user is needed")
async def test_a_user_without_processes_left_is_told() -> None:
    """The system's own EAGAIN: the template takes away what it may have."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        script = folder / "room.py"
        script.write_text(
            "import resource\n"
            "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
            "def handler(): pass\n"
        )
        isolation = Isolation(user="54322", group="54322")
        async with Node(hosts=[HostOptions(targets=(str(script),), isolation=isolation)]) as node:
            said = await node.started(node.spawn(str(script)))
    assert said is not None
    assert "the operating system refused a fork" in said
    assert "Resource temporarily unavailable" in said
