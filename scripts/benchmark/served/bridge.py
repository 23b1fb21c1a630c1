"""A bridge made by hand: FastAPI, a process per connection, or one per room, and a pipe to it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from benchmark.served import work

__all__ = ["app"]

_INTERNAL_ERROR = 1011

_processes = multiprocessing.get_context("forkserver")
app = FastAPI()


def echo(pipe: Connection) -> None:
    """Send each text back."""
    while True:
        pipe.send(pipe.recv())


def service(pipe: Connection) -> None:
    """Answer each text."""
    while True:
        pipe.send(work.serve(pipe.recv()))


def room(pipe: Connection) -> None:
    """Say to which members each text goes: to all."""
    members: set[int] = set()
    while True:
        topic, member, text = pipe.recv()
        if topic == "join":
            members.add(member)
        elif topic == "leave":
            members.discard(member)
        else:
            pipe.send(([*members], text))


def _run(handler: Callable[[Connection], None], pipe: Connection) -> None:
    try:
        handler(pipe)
    except (EOFError, BrokenPipeError):  # the bridge has gone, or wants this to end
        pass


class _Worker:
    """A process, what it says, and what is called when it says so."""

    def __init__(self, handler: Callable[[Connection], None], heard: Callable[[Any], None]) -> None:
        self.pipe, self._theirs = _processes.Pipe()
        self._heard = heard
        self._process = _processes.Process(target=_run, args=(handler, self._theirs), daemon=True)
        self.ended = asyncio.Event()

    async def start(self) -> None:
        await asyncio.to_thread(self._process.start)
        self._theirs.close()
        asyncio.get_running_loop().add_reader(self.pipe.fileno(), self._read)
        os.set_blocking(self.pipe.fileno(), True)  # uvloop had it otherwise

    def _read(self) -> None:
        try:
            self._heard(self.pipe.recv())
        except (EOFError, ConnectionError):
            asyncio.get_running_loop().remove_reader(self.pipe.fileno())
            self.ended.set()

    async def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pipe.fileno())
        self.pipe.close()
        await asyncio.to_thread(self._process.join)


class _Room:
    """The one room: its worker starts with its first member."""

    def __init__(self) -> None:
        self.members: dict[int, asyncio.Queue[str]] = {}
        self._worker = _Worker(room, self._heard)
        self._start: asyncio.Task[None] | None = None

    async def started(self) -> Connection:
        if self._start is None:
            self._start = asyncio.create_task(self._worker.start())
        await self._start
        return self._worker.pipe

    def _heard(self, order: tuple[list[int], str]) -> None:
        members, text = order
        for member in members:
            if member in self.members:
                self.members[member].put_nowait(text)


_room: list[_Room] = []


async def _send(websocket: WebSocket, queue: asyncio.Queue[str]) -> None:
    while True:
        await websocket.send_text(await queue.get())


async def _in_room(websocket: WebSocket) -> None:
    if not _room:
        _room.append(_Room())
    [shared] = _room
    pipe = await shared.started()
    member, queue = id(websocket), asyncio.Queue[str]()
    shared.members[member] = queue
    sender = asyncio.create_task(_send(websocket, queue))
    pipe.send(("join", member, ""))
    await websocket.accept()
    try:
        async for text in websocket.iter_text():
            pipe.send(("say", member, text))
    finally:
        sender.cancel()
        del shared.members[member]
        pipe.send(("leave", member, ""))


async def _alone(websocket: WebSocket, handler: Callable[[Connection], None]) -> None:
    queue = asyncio.Queue[str]()
    worker = _Worker(handler, queue.put_nowait)
    await worker.start()
    await websocket.accept()

    async def close() -> None:
        await worker.ended.wait()
        await websocket.close(_INTERNAL_ERROR)

    tasks = [asyncio.create_task(_send(websocket, queue)), asyncio.create_task(close())]
    try:
        async for text in websocket.iter_text():
            worker.pipe.send(text)
    except (ConnectionError, WebSocketDisconnect):
        pass
    finally:
        for task in tasks:
            task.cancel()
        await worker.stop()


@app.websocket("/ws")
async def relay(websocket: WebSocket) -> None:
    """Relay one client."""
    match os.environ["BENCH_MODE"]:
        case "room":
            await _in_room(websocket)
        case mode:
            await _alone(websocket, {"echo": echo, "service": service}[mode])
