"""A relayed connection over ASGI's `receive` and `send`: the portable transport."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from wsrelay.node import Node
from wsrelay.session.header import RelayHeader

from .asgi import Event, Receive, Send
from .connection import AHEAD, ClientPeer, ConnectionLimits, RelayedConnection
from .rate_limited_log import RateLimitedLog

__all__ = ["AsgiConnection"]

_refusals = RateLimitedLog(logging.getLogger(__name__))


class AsgiConnection(RelayedConnection):
    """A relayed connection over any ASGI server.

    It runs two tasks: one reads from the client and waits while the target has no room, the other
    writes the outbox at the client's pace. Neither waits for the other.
    """

    def __init__(
        self, node: Node, relay: RelayHeader, limits: ConnectionLimits, peer: ClientPeer
    ) -> None:
        super().__init__(node, relay, limits, peer)
        self._news = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._unfinished = 0

    async def serve(self, accept: Event, receive: Receive, send: Send) -> None:
        """Upgrade and relay until the client or the connection's process is gone."""
        if not await self._upgrade(accept, send):
            return
        reader = asyncio.create_task(self._read(receive), name=f"read {self.pid}")
        self._writer = asyncio.create_task(self._write(send), name=f"write {self.pid}")
        tasks = {reader, self._writer}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._disarm()
            self._do(self._session.client_gone(1006))
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _read(self, receive: Receive) -> None:
        early: asyncio.Task[Event] | None = None
        try:
            while True:
                event = await (receive() if early is None else early)
                early = None
                if event["type"] == "websocket.disconnect":
                    code, reason, known = _how(event)
                    self._do(self._session.client_gone(code, reason, known=known))
                    return
                data = _data(event)
                if len(data) > AHEAD:
                    await self._until_room(len(data))
                self._do(self._session.message(data))
                while (room := self._no_room()) is not None:
                    # Keep listening in case the client goes; at most one message is read ahead.
                    early = early or asyncio.create_task(_as_coroutine(receive))
                    waiting: set[asyncio.Future[Any]] = {early, room}
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    if early.done() and early.result()["type"] == "websocket.receive":
                        await self._until_room(len(_data(early.result())))
                    self._room = None
                    if early.done() and early.result()["type"] == "websocket.disconnect":
                        break
        finally:
            if early is not None:
                early.cancel()

    async def _until_room(self, size: int) -> None:
        """Hold a message until the target has room for it."""
        buffered = self.buffered
        self._unfinished = size
        buffered.size += size
        try:
            if buffered.refuses(size):
                _refusals.warning(
                    self._loop.time(),
                    "%s: 1013: this node holds %d bytes of unfinished client data (max_buffered), "
                    "%d of them for %s",
                    self.pid,
                    buffered.size,
                    size,
                    self._session.target,
                )
                self._do(self._session.refuse_more())
            while (room := self._no_room()) is not None:
                await room
        finally:
            buffered.size -= size
            self._unfinished = 0

    def _no_room(self) -> asyncio.Future[None] | None:
        """Return None if there is room, else a future to await before looking again."""
        pipe = self._target.pipe
        if not pipe.full and not self._session.holds:
            return None
        room = self._room = self._loop.create_future()
        if pipe.full:
            pipe.when_room(self.pid, self._transferred)
        return room

    async def _write(self, send: Send) -> None:
        outbox = self._session.outbox
        try:
            while True:
                while outbox:
                    message = outbox.get()
                    data = message.data
                    kind = "text" if isinstance(data, str) else "bytes"
                    await send({"type": "websocket.send", kind: data})
                    self._wrote(message)
                if self._closing is not None:
                    break
                self._news.clear()
                await self._news.wait()
            closing = self._closing
            event = {"type": "websocket.close", "code": closing.code, "reason": closing.reason}
            await send(event)
            self._wrote_close()
        except OSError:
            pass  # the client is gone, which the reader notices too

    @property
    def unfinished(self) -> int:
        """Bytes of the message that waits for the target; the server keeps incomplete ones."""
        return self._unfinished

    def _flush(self) -> None:
        self._news.set()

    def _transferred(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _give_up(self) -> None:
        if self._writer is not None:
            self._writer.cancel()


def _how(event: Event) -> tuple[int, str, bool]:
    """Return the code and reason of a disconnect event, and whether the server knows them.

    Events without a reason are special: uvicorn reports a client that vanished this way, with 1005,
    and hypercorn every client that goes, however it goes, with 1006.
    """
    code = event.get("code", 1005)
    if "reason" not in event and code in (1005, 1006):
        return 1006, "", code == 1005  # noqa: PLR2004 - RFC 6455 section 7.4.1
    return code, event.get("reason") or "", True


def _data(event: Event) -> str | bytes:
    text: str | None = event.get("text")
    return event["bytes"] if text is None else text


async def _as_coroutine(receive: Receive) -> Event:
    return await receive()
