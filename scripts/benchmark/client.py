"""One WebSocket connection of the load generator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from picows import WSCloseCode, WSListener, WSMsgType, WSTransport, ws_connect

__all__ = ["Client", "UnexpectedError", "connect", "connect_all", "together"]

_TIMEOUT = 30.0
_CLOSE_TIMEOUT = 2.0
_MAX_FRAME = 32 * 1024 * 1024
_NO_FRAME = 1006

_TEXT, _CLOSE = WSMsgType.TEXT, WSMsgType.CLOSE


class UnexpectedError(Exception):
    """The server did something else than its work."""


def _ignore(_client: Client, _frame: Any = None) -> None:
    pass


class Client(WSListener):
    """A connection; `on_text` is called with each text's frame, `on_end` once."""

    transport: WSTransport

    def __init__(self) -> None:
        super().__init__()
        self.on_text: Callable[[Client, Any], None] = _ignore
        self.on_end: Callable[[Client], None] = _ignore
        self.closed_at = 0.0
        self.close_code = 0

    # picows calls these

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Take the transport."""
        self.transport = transport

    def on_ws_frame(self, _transport: WSTransport, frame: Any) -> None:
        """Take in a frame; the servers here do not fragment their messages."""
        if frame.msg_type is _TEXT:
            self.on_text(self, frame)
        elif frame.msg_type is _CLOSE:
            self._end(int(frame.get_close_code().value))
            self.transport.send_close(WSCloseCode.OK)
            self.transport.disconnect()

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        """Take the end of the TCP connection for that of the WebSocket, if none came before."""
        self._end(_NO_FRAME)

    def _end(self, code: int) -> None:
        if not self.close_code:
            self.closed_at, self.close_code = time.perf_counter(), code
            self.on_end(self)

    # The jobs call these

    def ignore(self) -> None:
        """Watch it no longer."""
        self.on_text = self.on_end = _ignore

    def send(self, text: bytes) -> None:
        """Send a text."""
        self.transport.send(_TEXT, text)

    async def ask(self, text: bytes) -> bytes:
        """Send a text and return the next one that comes."""
        if self.close_code:
            raise self.closed()
        answer = asyncio.Future[bytes]()

        def take(_client: Client, frame: Any) -> None:
            if not answer.done():
                answer.set_result(frame.get_payload_as_bytes())

        def fail(_client: Client) -> None:
            if not answer.done():
                answer.set_exception(self.closed())

        self.on_text, self.on_end = take, fail
        try:
            self.send(text)
            async with asyncio.timeout(_TIMEOUT):
                return await answer
        finally:
            self.ignore()

    def closed(self) -> UnexpectedError:
        """Return the error of who did not expect this."""
        return UnexpectedError(f"the connection was closed with {self.close_code}")

    async def ended(self) -> None:
        """Wait until the server ends the connection."""
        end = asyncio.Event()
        self.on_end = lambda _: end.set()
        if not self.close_code:
            async with asyncio.timeout(_TIMEOUT):
                await end.wait()

    async def close(self) -> None:
        """Close it in order, or else by force."""
        self.ignore()
        if not self.close_code:
            self.transport.send_close(WSCloseCode.OK)
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self.transport.wait_disconnected()
        except TimeoutError:
            self.transport.disconnect()


async def connect(url: str) -> Client:
    """Open one connection."""
    async with asyncio.timeout(_TIMEOUT):
        _, client = await ws_connect(
            Client, url, max_frame_size=_MAX_FRAME, proxy=None, websocket_handshake_timeout=_TIMEOUT
        )
    assert isinstance(client, Client)  # noqa: S101 (for the reader and mypy)
    return client


async def connect_all(url: str, count: int, parallel: int, clients: list[Client]) -> None:
    """Open so many connections, some at a time, and put them into the list as they open."""
    gate = asyncio.Semaphore(parallel)

    async def one() -> None:
        async with gate:
            clients.append(await connect(url))

    await together(one() for _ in range(count))


async def together(works: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run coroutines at once; the first error ends them all, and is raised as it is."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
