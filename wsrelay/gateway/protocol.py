"""uvicorn's wsproto protocol with what the relay promises beyond it (contract section 2).

Keepalive that never takes a busy target for a dead client, and a close that a client which does
not read cannot hold up.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import sys
import termios
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.websockets.wsproto_impl import FrameTooLargeError, WSProtocol
from uvicorn.server import ServerState
from wsproto import events
from wsproto.connection import ConnectionState

from wsrelay.relay.asgi import TRANSPORT, Transport

from .http import State

__all__ = ["RelayProtocol"]

_BYTES_ACKED: Final = slice(120, 128)
"""`tcpi_bytes_acked` in the `tcp_info` of tcp(7)."""

_VANISHED: Final = 60_000
"""Milliseconds after which a client that acknowledges nothing is gone, where there are no pings."""

_LINGER: Final = 2.0
"""Seconds that a socket gets to flush what is left for a client that is given up."""


class RelayProtocol(WSProtocol):
    """One WebSocket connection of our front end."""

    _failed = False
    _acknowledged = 0
    _read_late = False
    """Reading was paused at some time since the last ping: a missing pong proves nothing."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._state = server_state
        self._lost: asyncio.Future[None] = self.loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Have the kernel notice a client that acknowledges nothing any more.

        While reading is paused no pong is due; the unanswered pings make it an error then.
        """
        super().connection_made(transport)
        if (sock := self._tcp_socket()) is not None:
            patience = (self.ping_interval or 0) + (self.ping_timeout or 0)
            milliseconds = round(patience * 1000) or _VANISHED
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """See to its end."""
        super().connection_lost(exc)
        self._lost.set_result(None)
        if isinstance(self._state, State):
            self._state.admission.leave(self.client[0] if self.client else None)

    def handle_connect(self, event: events.Request) -> None:
        """Offer the transport to the middleware through the scope."""
        super().handle_connect(event)
        extensions: Any = self.scope["extensions"]
        extensions[TRANSPORT] = Transport(self._abort, self._lost)

    def data_received(self, data: bytes) -> None:
        """Take bytes; those of a client whose connection has failed go nowhere."""
        if not self._failed:
            super().data_received(data)

    def handle_message(self, event: events.TextMessage | events.BytesMessage) -> None:
        """Pass a message on as soon as it is whole, and note that reading pauses."""
        try:
            self.buffer.extend(event)
        except FrameTooLargeError:
            most = self.config.ws_max_size
            self._fail(1009, f"Message exceeds the maximum size ({most} bytes)")
            return
        if event.message_finished:
            self.queue.put_nowait(self.buffer.to_message())
            self.buffer.clear()
            if not self.read_paused:
                self.read_paused = self._read_late = True
                self.transport.pause_reading()

    def handle_close(self, event: events.CloseConnection) -> None:
        """Close; where the client has not asked for it, it broke the protocol."""
        if self.conn.state is ConnectionState.OPEN:
            self._fail(event.code, event.reason or "")
        else:
            super().handle_close(event)

    def send_keepalive_ping(self) -> None:
        """Send a ping."""
        if not self.transport.is_closing():
            self._read_late = self.read_paused
            self._acknowledged = self._bytes_acknowledged()
            super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        """Close, unless the pong may lie unread because a target is busy.

        Or unless the ping is still behind what a slow client is taking, bit by bit.
        """
        self.pong_timer = None
        if self.close_sent or self.transport.is_closing():
            return
        taking = self._bytes_acknowledged() != self._acknowledged and self._bytes_unsent()
        if self._read_late or taking:
            # Another ping, not only more time: it is what fails if the client has vanished.
            self.send_keepalive_ping()
        else:
            self._fail(1011, "keepalive ping timeout")

    def shutdown(self) -> None:
        """Close with 1012 at the server's shutdown."""
        super().shutdown()
        self._abort_later()

    def _bytes_acknowledged(self) -> int:
        """Return how much the client's TCP has taken; 0 where the system does not tell."""
        sock = self._tcp_socket()
        if sock is None:
            return 0
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
        return int.from_bytes(info[_BYTES_ACKED], sys.byteorder)

    def _bytes_unsent(self) -> int:
        """Return how much waits for the client, here and in the kernel."""
        queued = array.array("i", [0])
        sock = self._tcp_socket()
        if sock is not None:
            fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
        return self.transport.get_write_buffer_size() + queued[0]

    def _tcp_socket(self) -> socket.socket | None:
        sock: socket.socket | None = self.transport.get_extra_info("socket")
        if sys.platform != "linux" or sock is None or sock.family == socket.AF_UNIX:
            return None
        return sock

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455 section 7.1.7).

        What the client still sends is read and dropped: closing the socket with bytes unread would
        make the kernel send RST, which overtakes the close frame.
        """
        self.stop_keepalive()
        self._failed = self.close_sent = self.disconnected = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(self.conn.send(events.CloseConnection(code=code, reason=reason)))
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(_LINGER, self._abort)

    def _abort_later(self) -> None:
        """Let the socket flush for a while: `close()` alone waits for a client for ever."""
        self.loop.call_later(_LINGER, self._abort)

    def _abort(self) -> None:
        self.transport.abort()
