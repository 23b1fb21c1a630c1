"""A bridge made by hand: FastAPI, a process per connection, or one per room, and a pipe to it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
from multiprocessing.connection import Connection

from fastapi import FastAPI, WebSocket

from benchmark.served.work import ANSWERS

__all__ = ["app"]

_INTERNAL_ERROR = 1011
_MODE = os.environ["BENCH_MODE"]

_processes = multiprocessing.get_context("forkserver")
app = FastAPI()


def work(pipe: Connection) -> None:
    """Answer what a client says to all clients of this process."""
    answer = ANSWERS[_MODE]
    clients: set[int] = set()
    with contextlib.suppress(EOFError, BrokenPipeError):  # the bridge has gone, or stops this
        while True:
            topic, client, text = pipe.recv()
            if topic == "join":
                clients.add(client)
            elif topic == "leave":
                clients.discard(client)
            else:
                pipe.send(([*clients], answer(text)))


class Room:
    """A process and the texts for its clients, which end with None; it starts at once."""

    def __init__(self) -> None:
        self.clients: dict[int, asyncio.Queue[str | None]] = {}
        self.pipe, self._theirs = _processes.Pipe()
        self._process = _processes.Process(target=work, args=(self._theirs,), daemon=True)
        self.started = asyncio.create_task(self._start())

    async def _start(self) -> None:
        await asyncio.to_thread(self._process.start)
        self._theirs.close()
        asyncio.get_running_loop().add_reader(self.pipe.fileno(), self._read)
        os.set_blocking(self.pipe.fileno(), True)  # uvloop had it otherwise

    def _read(self) -> None:
        text: str | None
        try:
            clients, text = self.pipe.recv()
        except (EOFError, ConnectionError):
            asyncio.get_running_loop().remove_reader(self.pipe.fileno())
            clients, text = [*self.clients], None
        for client in clients:
            if client in self.clients:
                self.clients[client].put_nowait(text)

    async def stop(self) -> None:
        """End the process."""
        asyncio.get_running_loop().remove_reader(self.pipe.fileno())
        self.pipe.close()
        await asyncio.to_thread(self._process.join)


_shared = functools.cache(Room)


async def _send(websocket: WebSocket, texts: asyncio.Queue[str | None]) -> None:
    while (text := await texts.get()) is not None:
        await websocket.send_text(text)
    await websocket.close(_INTERNAL_ERROR)


@app.websocket("/ws")
async def relay(websocket: WebSocket) -> None:
    """Relay one client."""
    room = _shared() if _MODE == "room" else Room()
    await room.started
    client = id(websocket)
    texts = asyncio.Queue[str | None]()
    room.clients[client] = texts
    room.pipe.send(("join", client, ""))
    await websocket.accept()
    sender = asyncio.create_task(_send(websocket, texts))
    try:
        async for text in websocket.iter_text():
            room.pipe.send(("say", client, text))
    except ConnectionError:
        pass
    finally:
        sender.cancel()
        del room.clients[client]
        if _MODE == "room":
            room.pipe.send(("leave", client, ""))
        else:
            await room.stop()
