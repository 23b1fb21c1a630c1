"""uvicorn's HTTP/1.1 protocol with the bounds that hold before a request is read.

A connection too many is refused at once, and one that does not send a whole request head in time
is cut off: by then nothing is known of the client, and nothing has been asked of the application.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .admission import Admission

__all__ = ["HTTPProtocol", "State", "leave"]

_LINGER: Final = 2.0
"""Seconds that a refused client gets to take its answer."""


class State(ServerState):
    """What the connections of one server share; `header_timeout` is seconds."""

    def __init__(self, admission: Admission, header_timeout: float) -> None:
        super().__init__()
        self.admission = admission
        self.header_timeout = header_timeout


def leave(state: ServerState, client: tuple[str, int] | None) -> None:
    """Count a connection out; another server of uvicorn's, into which we were put, counts none."""
    if isinstance(state, State):
        state.admission.leave(client[0] if client else None)


class HTTPProtocol(H11Protocol):
    """One HTTP connection of our front end."""

    server_state: State
    _deadline: asyncio.TimerHandle | None = None
    _upgraded = False
    _refusal = 0
    """The status that refuses the connection; 0: it is in."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in, or not."""
        super().connection_made(transport)
        state, host = self.server_state, self.client[0] if self.client else None
        self._refusal = state.admission.enter(host, self.loop.time())
        if not self._refusal:
            self._watch_head()
        elif state.admission.overrun:
            transport.abort()
        else:
            # Clients do not expect an answer before they have asked.
            self._deadline = self.loop.call_later(_LINGER, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take bytes; from the first of a request on, its whole head is due in time."""
        if self._refusal:
            self._refuse(self._refusal)
            return
        super().data_received(data)
        self._watch_head()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection on to the WebSocket protocol, which sees to its end."""
        if not _decodable(self.headers):
            self.send_400_response("Invalid HTTP request received.")
            return
        self._upgraded = True
        super().handle_websocket_upgrade(event)
        early, _ = self.conn.trailing_data
        if early:
            # uvicorn would forget it, and take what follows for the beginning of a frame.
            protocol: Any = self.transport.get_protocol()
            protocol.data_received(early)

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are no HTTP; a request before them gets no other answer."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """See to its end."""
        self._unwatch()
        super().connection_lost(exc)
        leave(self.server_state, self.client)

    def _watch_head(self) -> None:
        waits = self.conn.their_state is h11.IDLE and not self._upgraded
        if not waits or self.timeout_keep_alive_task is not None:
            self._unwatch()
        elif self._deadline is None:
            timeout = self.server_state.header_timeout
            self._deadline = self.loop.call_later(timeout, self._refuse, HTTPStatus.REQUEST_TIMEOUT)

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int) -> None:
        """Answer without asking the application, and close."""
        if self.transport.is_closing():
            return
        self._refusal = status
        self._unwatch()
        again = "" if status == HTTPStatus.REQUEST_TIMEOUT else "retry-after: 1\r\n"
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{again}"
        self.transport.write(f"{head}content-length: 0\r\nconnection: close\r\n\r\n".encode())
        self.transport.close()
        self._deadline = self.loop.call_later(_LINGER, self.transport.abort)


def _decodable(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether wsproto can decode the headers that it decodes; if not, it would raise."""
    try:
        for name, value in headers:
            if name == b"host":
                value.decode("idna")
            elif name in (b"connection", b"upgrade") or name.startswith(b"sec-websocket-"):
                value.decode("ascii")
    except UnicodeError:
        return False
    return True
