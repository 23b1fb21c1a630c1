"""The clients of the soak, each a task that connects and leaves over and over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from .hostile import CLIENTS, ROOMS, Attacker
from .node import Node

__all__ = ["Traffic"]

_KILLED: Final = ("SIGKILL", "template lost")
"""Parts of the close reasons that the soak's own kills cause."""


class Traffic:
    """Clients and faults; counts what they did, and records what should not have happened."""

    def __init__(self, node: Node, seed: int, patience: float) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.latencies: list[float] = []
        """Seconds from an echo's request to its answer, since the last line of the table."""
        self._node = node
        self._patience = patience
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = asyncio.Event()

    def start(self, clients: int, *, faults: bool = True) -> None:
        """Start this many clients, most of them healthy."""
        kinds = [self._echo] * 5 + [self._chat] * 3 + [self._busy, self._big, self._visitor]
        kinds += [self._slow, self._slow, self._vanish, self._attack] if faults else []
        for i in range(clients):
            self._tasks.append(asyncio.create_task(self._again(kinds[i % len(kinds)], i)))
        if faults:
            self._tasks += [
                asyncio.create_task(self._kill()),
                asyncio.create_task(self._reload()),
            ]

    async def stop(self) -> None:
        """Let every client finish what it is doing and leave."""
        self._stopped.set()
        done, late = await asyncio.wait(self._tasks, timeout=5 * self._patience)
        for task in late:
            self.problems.append(f"{task.get_coro()} does not end")
            task.cancel()
        for task in done:
            if (error := task.exception()) is not None:
                self.problems.append(f"a client failed: {error!r}")

    async def _pause(self, seconds: float) -> None:
        """Wait for a random time around this many seconds, or until the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._random.uniform(0.5, 1.5) * seconds):
                await self._stopped.wait()

    async def _again(self, client: Any, number: int) -> None:
        while not self._stopped.is_set():
            try:
                async with asyncio.timeout(4 * self._patience):
                    await client(number)
            except ConnectionClosed as error:
                self._closed(client.__name__, error)
            except TimeoutError:
                self.problems.append(f"{client.__name__} {number}: waited in vain")
            except (OSError, InvalidHandshake, EOFError) as error:
                # A room may be killed while a client connects, which then gets 503.
                self.counts["refused"] += 1
                if "503" not in str(error):
                    self.problems.append(f"{client.__name__} {number}: {error!r}")
            await self._pause(0.1)

    def _closed(self, client: str, error: ConnectionClosed) -> None:
        code = error.rcvd.code if error.rcvd else 1006
        reason = error.rcvd.reason if error.rcvd else ""
        self.counts[f"closed {code}"] += 1
        # A room that was ending closes a new client with 1013; a killed one says so.
        expected = (code == 1011 and any(how in reason for how in _KILLED)) or code == 1013  # noqa: PLR2004
        if not expected:
            self.problems.append(f"{client} was closed with {code} {reason!r}")

    @contextlib.asynccontextmanager
    async def _connected(self, path: str, **options: Any) -> AsyncIterator[ClientConnection]:
        settings: dict[str, Any] = {"compression": None, "ping_interval": None, "proxy": None}
        async with connect(
            f"{self._node.url}/{path}", max_size=None, close_timeout=5, **settings, **options
        ) as websocket:
            self.counts["connects"] += 1
            yield websocket

    async def _receive(self, websocket: ClientConnection) -> str | bytes:
        async with asyncio.timeout(self._patience):
            data = await websocket.recv()
        self.counts["in"] += 1
        return data

    async def _ask(self, websocket: ClientConnection, data: str | bytes) -> None:
        """Send data, and expect the same back."""
        began = time.perf_counter()
        self.counts["out"] += 1
        await websocket.send(data)
        answer = await self._receive(websocket)
        if answer != data:
            self.problems.append(f"sent {data!r:.40} and got {answer!r:.40}")
        self.latencies.append(time.perf_counter() - began)

    # Healthy clients

    async def _echo(self, number: int) -> None:
        """Talk for a while, moving between rooms."""
        async with self._connected(f"close/echo/{number % 7}") as websocket:
            for i in range(self._random.randrange(50, 1000)):
                if self._stopped.is_set():
                    return
                if self._random.random() < 0.01:  # noqa: PLR2004
                    await self._ask(websocket, f"move echo {self._random.randrange(7)}")
                    self.counts["transfers"] += 1
                await self._ask(websocket, f"{number} {i}")
                await asyncio.sleep(0.02)

    async def _chat(self, number: int) -> None:
        """Send numbered messages, and get them back in order among the others'."""
        async with self._connected(f"close/chat/{number % 2}") as websocket:
            for i in range(self._random.randrange(10, 100)):
                if self._stopped.is_set():
                    return
                mine = f"{number} {i}"
                self.counts["out"] += 1
                await websocket.send(mine)
                while (heard := str(await self._receive(websocket))) != mine:
                    if heard.split(maxsplit=1)[0] == str(number):
                        self.problems.append(f"waited for {mine!r} and heard {heard!r}")
                await self._idle(websocket, 0.3)

    async def _idle(self, websocket: ClientConnection, seconds: float) -> None:
        """Receive for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    await websocket.recv()
                    self.counts["in"] += 1

    async def _visitor(self, number: int) -> None:
        """Connect to a room of one's own, say something, and leave."""
        async with self._connected(f"close/echo/{number}-{self._random.random()}") as websocket:
            await self._ask(websocket, "hello")

    async def _busy(self, number: int) -> None:
        """Have a room compute, and stay connected."""
        async with self._connected(f"close/busy/{number}") as websocket:
            began = len(self.latencies)
            await self._ask(websocket, "0.5")
            del self.latencies[began:]  # they say nothing about the relay
        await self._pause(3)

    async def _big(self, number: int) -> None:
        """Exchange messages of a megabyte."""
        async with self._connected(f"close/echo/big-{number}") as websocket:
            began = len(self.latencies)
            for _ in range(5):
                await self._ask(websocket, os.urandom(1_000_000))
            del self.latencies[began:]
        await self._pause(2)

    # Others

    async def _slow(self, number: int) -> None:
        """Ask for more than the outbox holds and read nothing for a while."""
        policy = self._random.choice(["close", "pause", "drop"])
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        sock.setblocking(False)
        host, port = self._node.url.removeprefix("ws://").split(":")
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        received: list[int] = []
        try:
            async with self._connected(f"{policy}/feed/{policy}-{number}", sock=sock) as websocket:
                websocket.transport.pause_reading()
                await websocket.send("16000")
                await self._pause(1)
                websocket.transport.resume_reading()
                while isinstance(data := await self._receive(websocket), bytes):
                    received.append(int(data[:8]))
        except ConnectionClosed as error:
            if policy != "close" or error.rcvd is None or error.rcvd.code != 1013:  # noqa: PLR2004
                # It may also have been aborted after the linger, with no close frame.
                if policy == "close" and error.rcvd is None:
                    self.counts["aborted"] += 1
                    return
                raise
            self.counts["slow clients closed"] += 1
        else:
            self.counts[f"slow clients ({policy})"] += 1
            if policy == "pause" and received != list(range(1600)):
                self.problems.append(f"pause: {len(received)} of 1600 messages arrived")
            if received != sorted(set(received)):
                self.problems.append(f"{policy}: messages out of order")
        await self._pause(2)

    async def _vanish(self, number: int) -> None:
        """Leave without a close frame, with RST."""
        async with self._connected(f"close/echo/vanish-{number}") as websocket:
            await self._ask(websocket, "here")
            sock = websocket.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            websocket.transport.abort()
            self.counts["vanished"] += 1
        await self._pause(1)

    async def _attack(self, number: int) -> None:
        """Be hostile, or set a hostile room to work; it may end in any way."""
        name = self._random.choice((*CLIENTS, *ROOMS))
        self.counts[f"attacks ({name})"] += 1
        with contextlib.suppress(ConnectionClosed, InvalidHandshake, OSError, EOFError):
            if name in CLIENTS:
                await getattr(Attacker(self._node.url), name)()
            else:
                async with self._connected(f"close/hostile/{number}") as websocket:
                    await websocket.send(name)
                    await self._idle(websocket, 5)
        await self._pause(1)

    # Faults

    async def _kill(self) -> None:
        """Kill a worker now and then, and rarely a template."""
        while not self._stopped.is_set():
            await self._pause(1.5)
            info = await self._node.info()
            if info is None or self._stopped.is_set():
                return
            workers = [worker.os_pid for worker in info.processes if worker.os_pid is not None]
            templates = [host.os_pid for host in info.hosts if host.os_pid is not None]
            template = self._random.random() < 0.02  # noqa: PLR2004
            choices = templates if template else workers
            if choices:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._random.choice(choices), signal.SIGKILL)
                    self.counts["templates killed" if template else "workers killed"] += 1

    async def _reload(self) -> None:
        while not self._stopped.is_set():
            await self._pause(10)
            if not self._stopped.is_set():
                self._node.reload(edit=self._random.random() < 0.5)  # noqa: PLR2004
                self.counts["reloads"] += 1
