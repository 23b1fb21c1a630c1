"""One WebSocket connection of the load generator."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from picows import WSCloseCode, WSListener, WSMsgType, WSTransport, ws_connect

from .server import MeasureError

__all__ = ["Client", "connect", "together"]

_HANDSHAKE = 30.0
_CLOSING = 2.0
_MAX_FRAME = 32 * 1024 * 1024
_NO_FRAME = 1006
_TEXT, _CLOSE = WSMsgType.TEXT, WSMsgType.CLOSE

# picows warns when large messages have to wait.
logging.getLogger("picows").setLevel(logging.ERROR)


def _ignore(_frame: Any) -> None:
    pass


class Client(WSListener):
    """A connection; `on_text` is called with each text's frame."""

    transport: WSTransport

    def __init__(self) -> None:
        super().__init__()
        self.on_text: Callable[[Any], object] = _ignore
        self.closed_at = 0.0
        """When the server ended it, in seconds of `time.perf_counter`."""
        self.close_code = 0
        """The code with which it did so, 1006 without a close frame; 0 while it is open."""
        self._watched: asyncio.Future[Any] | None = None

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Take the transport from picows."""
        self.transport = transport

    def on_ws_frame(self, _transport: WSTransport, frame: Any) -> None:
        """Take in a frame; the servers here do not fragment their messages."""
        if frame.msg_type is _TEXT:
            self.on_text(frame)
        elif frame.msg_type is _CLOSE:
            self._end(int(frame.get_close_code().value))
            self.transport.send_close(WSCloseCode.OK)
            self.transport.disconnect()

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        """Count this as the end of the WebSocket, unless a close frame came before."""
        self._end(_NO_FRAME)

    def _end(self, code: int) -> None:
        if not self.close_code:
            self.closed_at, self.close_code = time.perf_counter(), code
        if self._watched and not self._watched.done():
            closed = f"the connection was closed with {self.close_code}"
            self._watched.set_exception(MeasureError(closed))

    def fail_at_end(self, future: asyncio.Future[Any]) -> None:
        """Have a future fail with `MeasureError` when the connection ends, or if it has ended."""
        self._watched = future
        if self.close_code:
            self._end(self.close_code)

    def send(self, text: bytes) -> None:
        """Send a text."""
        self.transport.send(_TEXT, text)

    async def ask(self, text: bytes) -> bytes:
        """Send a text and return the next one that comes; raises `MeasureError`."""
        answer = asyncio.Future[bytes]()

        def take(frame: Any) -> None:
            if not answer.done():
                answer.set_result(frame.get_payload_as_bytes())

        self.on_text = take
        self.fail_at_end(answer)
        self.send(text)
        return await answer

    async def close(self) -> None:
        """Close it with a handshake, or after 2 s without one."""
        self.on_text = _ignore
        if not self.close_code:
            self.transport.send_close(WSCloseCode.OK)
        try:
            async with asyncio.timeout(_CLOSING):
                await self.transport.wait_disconnected()
        except TimeoutError:
            self.transport.disconnect(graceful=False)


async def connect(url: str) -> Client:
    """Open one connection; raises what `picows.ws_connect` raises."""
    _, client = await ws_connect(
        Client, url, max_frame_size=_MAX_FRAME, proxy=None, websocket_handshake_timeout=_HANDSHAKE
    )
    assert isinstance(client, Client)  # noqa: S101 (for the reader and mypy)
    return client


async def together(works: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run coroutines at once; the first error ends them all. Errors come as `ExceptionGroup`."""
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)
