"""Fault x place: a healthy room beside it is not touched, clients are told, nothing is left.

One row is one test. `Scene` is a node with a healthy room and the room that the fault hits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time

import pytest
import rooms
from staged import linux, staged
from support import client, closed, drop_all, received, room, until
from websockets.exceptions import ConnectionClosed

from wsrelay import ExitKind, Node, Result

pytestmark = pytest.mark.anyio


# kill -9


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "computing"])
async def test_kill_9_of_a_worker(shared: Node, *, busy: bool) -> None:
    async with staged(shared) as scene:
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
        fresh = scene.node.spawn(room(rooms.echo))
        assert await scene.node.started(fresh) is None, "there is a new one"


async def test_kill_9_of_a_template_that_is_asked_for_many_workers() -> None:
    async with staged() as scene:
        template = scene.node.templates["processes"]
        assert template is not None
        results: list[Result] = []
        for _ in range(20):
            scene.node.when_ended(scene.node.spawn(room(rooms.echo)), results.append)
        os.kill(template, signal.SIGKILL)
        await until(lambda: len(results) == 20, "the end of each is told")
        assert {r.error.kind for r in results if r.error} == {ExitKind.TEMPLATE_LOST}


# SIGSTOP


async def test_sigstop_of_a_worker_keeps_its_client_and_goes_on_with_sigcont(shared: Node) -> None:
    async with staged(shared) as scene:
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
            late = scene.node.spawn(room(rooms.echo))
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
async def test_what_a_worker_breaks_on_its_pipe_ends_it_alone(
    shared: Node, order: str, reason: str
) -> None:
    async with staged(shared) as scene:
        await scene.hit.send(order)
        assert await closed(scene.hit) == (1011, reason)
        await scene.is_over()
        await scene.is_well()


@pytest.mark.parametrize("number", range(8))
async def test_frames_that_no_worker_of_ours_writes_are_garbage_too(
    shared: Node, number: int
) -> None:
    async with staged(shared) as scene:
        await scene.hit.send("forged")
        await scene.hit.send(str(number))
        assert await closed(scene.hit) == (1011, "target process crashed")
        await scene.is_over()
        await scene.is_well()


async def test_a_worker_that_closes_its_pipe_keeps_nobody(shared: Node) -> None:
    async with staged(shared) as scene:
        await scene.hit.send("close the pipe")
        await scene.is_well()
        scene.node.terminate(scene.pid)
        assert await closed(scene.hit) == (1011, "target process killed (SIGKILL)")
        await scene.is_over()


# Full pipes


async def test_a_worker_that_does_not_read_stops_its_own_client_only(shared: Node) -> None:
    async with staged(shared) as scene:
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


async def test_a_client_that_does_not_read_is_given_up_and_its_room_goes_on(shared: Node) -> None:
    async with staged(shared) as scene, client(f"{scene.url}/hit") as other:
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
async def test_garbage_from_a_client_ends_its_connection(shared: Node, data: bytes) -> None:
    async with staged(shared) as scene:
        scene.hit.transport.write(data)
        with contextlib.suppress(ConnectionClosed):
            await asyncio.wait_for(scene.hit.recv(), 10)
        await until(lambda: len(scene.node.connections) == 1, "it is gone")
        assert scene.pid in scene.node.workers, "the room is another matter"
        await scene.is_well()


# A client that vanishes without FIN


@linux
async def test_an_idle_client_that_vanishes_is_noticed_by_its_pongs(shared: Node) -> None:
    async with staged(shared) as scene:
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
