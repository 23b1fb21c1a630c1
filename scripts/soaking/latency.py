"""`scripts/soak --latency`: an echo's latency alone, and beside peers that stall or flood."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import click
from websockets.asyncio.client import ClientConnection, connect

from .node import Node

__all__ = ["measure"]

_SETTINGS: Final[dict[str, Any]] = {
    "compression": None,
    "ping_interval": None,
    "proxy": None,
    "max_size": None,
}


@contextlib.asynccontextmanager
async def nobody(_: Node) -> AsyncIterator[None]:
    """Add no peer."""
    yield


@contextlib.asynccontextmanager
async def _unread(url: str) -> AsyncIterator[ClientConnection]:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    sock.setblocking(False)
    host, port = url.removeprefix("ws://").partition("/")[0].split(":")
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    async with connect(url, sock=sock, **_SETTINGS) as websocket:
        websocket.transport.pause_reading()
        yield websocket
        websocket.transport.abort()


@contextlib.asynccontextmanager
async def client_that_reads_nothing(node: Node) -> AsyncIterator[None]:
    """Make a worker wait for a client whose outbox is full."""
    async with _unread(f"{node.url}/pause/feed/x") as websocket:
        await websocket.send("1000000")
        yield
    await node.kill("feed x")


@contextlib.asynccontextmanager
async def room_that_reads_nothing(node: Node) -> AsyncIterator[None]:
    """Have a client send to a room that computes, until TCP stops it."""
    async with connect(f"{node.url}/close/busy/x", write_limit=32 * 1024, **_SETTINGS) as websocket:
        await websocket.send("600")
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(1):
                    await websocket.send(bytes(100_000))
        yield
        websocket.transport.abort()
    await node.kill("busy x")


@contextlib.asynccontextmanager
async def room_that_floods(node: Node) -> AsyncIterator[None]:
    """Have a room send as fast as it can to a client that reads nothing (policy `drop`)."""
    async with _unread(f"{node.url}/drop/feed/y") as websocket:
        await websocket.send("100000000")
        yield
    await node.kill("feed y")


CASES: Final[list[Callable[[Node], AbstractAsyncContextManager[None]]]] = [
    nobody,
    client_that_reads_nothing,
    room_that_reads_nothing,
    room_that_floods,
]


async def _latencies(node: Node, name: str, seconds: float) -> list[float]:
    found = []
    async with connect(f"{node.url}/close/echo/{name}", **_SETTINGS) as websocket:
        ends = time.perf_counter() + seconds
        while (began := time.perf_counter()) < ends:
            await websocket.send("x")
            await websocket.recv()
            found.append(time.perf_counter() - began)
            await asyncio.sleep(0.002)
    return sorted(found)


async def measure(rounds: int = 3, seconds: float = 3.0) -> None:
    """Print p50 and p99 beside each peer, and their ratios to those beside nobody."""
    results: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with Node(Path(folder), PING="1h") as node:
            for number in range(rounds):  # in turns, so that noise affects all alike
                for case in CASES:
                    async with case(node):
                        found = await _latencies(node, f"{case.__name__}-{number}", seconds)
                    quantiles = found[len(found) // 2], found[int(len(found) * 0.99)]
                    results.setdefault(case.__name__.replace("_", " "), []).append(quantiles)
    alone = [statistics.median(column) for column in zip(*results["nobody"], strict=True)]
    click.echo(f"{'beside':28} {'p50 ms':>8} {'p99 ms':>8} {'p50':>6} {'p99':>6}")
    for name, measured in results.items():
        p50, p99 = (statistics.median(column) for column in zip(*measured, strict=True))
        ratios = f"{p50 / alone[0]:5.2f}x {p99 / alone[1]:5.2f}x"
        click.echo(f"{name:28} {p50 * 1000:8.2f} {p99 * 1000:8.2f} {ratios}")
