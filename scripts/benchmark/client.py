"""One WebSocket connection of the load generator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from picows import WSCloseCode, WSListener, WSMsgType, WSTransport, ws_connect

__all__ = ["Client", "UnexpectedError", "close", "connect", "connect_all", "together"]

TIMEOUT = 30.0
_MAX_FRAME = 32 * 1024 * 1024
_NO_FRAME = 1006

_TEXT, _CLOSE = WSMsgType.TEXT, WSMsgType.CLOSE


class UnexpectedError(Exception):
    """The server did something else than its work."""


def _ignore(_client: Client) -> None:
    pass


class Client(WSListener):
    """A connection; `on_text` is called for each message, `on_end` once."""

    transport: WSTransport

    def __init__(self) -> None:
        super().__init__()
        self.on_text: Callable[[Client], None] = _ignore
        self.on_end: Callable[[Client], None] = _ignore
        self.sent_at = 0.0
        self.closed_at = 0.0
        self.close_code = 0
        self.keeps = False
        """Whether `text` is kept."""
        self.text = b""
        self._asked: asyncio.Future[bytes] | None = None

    # picows calls these

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Take the transport."""
        self.transport = transport

    def on_ws_frame(self, _transport: WSTransport, frame: Any) -> None:
        """Take in a frame; the servers here do not fragment their messages."""
        if frame.msg_type is _TEXT:
            if self.keeps:
                self.text = frame.get_payload_as_bytes()
            self.on_text(self)
        elif frame.msg_type is _CLOSE:
            self._end(int(frame.get_close_code().value))
            self.transport.send_close(WSCloseCode.OK)
            self.transport.disconnect()

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        """Take the end of the TCP connection for that of the other."""
        self._end(_NO_FRAME)

    def _end(self, code: int) -> None:
        if not self.close_code:
            self.closed_at, self.close_code = time.perf_counter(), code
            if self._asked is not None and not self._asked.done():
                self._asked.set_exception(UnexpectedError(f"the connection was closed with {code}"))
            self.on_end(self)

    # The generator calls these

    def send(self, text: bytes) -> None:
        """Send a text."""
        self.transport.send(_TEXT, text)

    async def ask(self, text: bytes) -> bytes:
        """Send a text and return the next one that comes."""
        if self.close_code:
            raise UnexpectedError(f"the connection was closed with {self.close_code}")
        self._asked = answer = asyncio.Future[bytes]()

        def take(client: Client) -> None:
            if not answer.done():
                answer.set_result(client.text)

        self.keeps, self.on_text = True, take
        try:
            self.send(text)
            async with asyncio.timeout(TIMEOUT):
                return await answer
        finally:
            self.keeps, self.on_text, self._asked = False, _ignore, None


async def connect(url: str) -> Client:
    """Open one connection."""
    async with asyncio.timeout(TIMEOUT):
        _, client = await ws_connect(
            Client, url, max_frame_size=_MAX_FRAME, proxy=None, websocket_handshake_timeout=TIMEOUT
        )
    assert isinstance(client, Client)  # noqa: S101 (for the reader and mypy)
    return client


async def close(client: Client) -> None:
    """Close a connection in order, or else by force."""
    if not client.close_code:
        client.transport.send_close(WSCloseCode.OK)
    try:
        async with asyncio.timeout(2):
            await client.transport.wait_disconnected()
    except TimeoutError:
        client.transport.disconnect()


async def connect_all(url: str, count: int, parallel: int) -> list[Client]:
    """Open connections, some at a time; if one fails, all are closed."""
    clients: list[Client] = []

    async def some() -> None:
        while len(clients) + opening[0] < count:
            opening[0] += 1
            try:
                clients.append(await connect(url))
            finally:
                opening[0] -= 1

    opening = [0]
    try:
        await together([some() for _ in range(min(parallel, count))])
    except BaseException:
        await together([close(client) for client in clients])
        raise
    return clients


async def together(works: Sequence[Coroutine[Any, Any, Any]]) -> None:
    """Run coroutines at once; the first error ends them all, and is raised as it is."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
