"""uvicorn's HTTP/1.1 protocol with the bounds that hold before a request is read.

A connection too many is refused at once, a request's head that is too large as soon as it is, and
one that does not come in time is cut off: by then nothing is known of the client, and nothing has
been asked of the application.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from wsrelay.relay import handshake
from wsrelay.relay.asgi import RETRY_AFTER, response

from .admission import Admission

__all__ = ["HTTPProtocol", "State", "end_our_side", "leave", "turn_away"]

_LINGER: Final = 2.0
"""Seconds that a refused client gets to take its answer."""


class State(ServerState):
    """What the connections of one server share: seconds for a request's head, and its bytes."""

    def __init__(self, admission: Admission, header_timeout: float, max_head_size: int) -> None:
        super().__init__()
        self.admission = admission
        self.header_timeout = header_timeout
        self.max_head_size = max_head_size


def leave(state: ServerState, client: tuple[str, int] | None) -> None:
    """Count a connection out; another server of uvicorn's, into which we were put, counts none."""
    if isinstance(state, State):
        state.admission.leave(client[0] if client else None)


def end_our_side(transport: asyncio.Transport) -> bool:
    """Send EOF and go on reading; returns whether that can be done: TLS has no halves."""
    if transport.is_closing() or not transport.can_write_eof():
        return False
    try:
        transport.write_eof()
    except OSError:
        return False  # the client is gone, which is about to be told
    return True


def turn_away(
    transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, status: int, text: str = ""
) -> asyncio.TimerHandle:
    """Answer a client and end the connection; returns what drops it if the client does not end it.

    What it still sends is to be read and dropped: closing the socket with bytes unread would make
    the kernel send RST, which overtakes the answer. TLS sees to that by itself.
    """
    headers = [(b"connection", b"close")]
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers.append(RETRY_AFTER)
    start, body = response(status, text.encode(), *headers)
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
    lines += [b"%s: %s" % header for header in start["headers"]]
    transport.write(b"\r\n".join([*lines, b"", body["body"]]))
    if end_our_side(transport):
        transport.resume_reading()
    else:
        transport.close()
    return loop.call_later(_LINGER, transport.abort)


class _Requests(h11.Connection):
    """h11's side of the server, which tells what it refuses instead of raising it.

    A head counts in bytes, however it arrives: h11 itself counts only those that are incomplete.
    """

    def __init__(self, most: int, refuse: Callable[[int, str], None]) -> None:
        super().__init__(h11.SERVER, most)
        self._most = most
        self._refuse = refuse

    def next_event(self) -> Any:
        """Return what `h11.Connection` does; a client that was refused says nothing more."""
        try:
            return self._next_event()
        except h11.RemoteProtocolError as error:
            self._refuse(error.error_status_hint, str(error))
            return h11.NEED_DATA

    def _next_event(self) -> Any:
        if self.their_state is not h11.IDLE:
            return super().next_event()
        before = len(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            if before - len(self.trailing_data[0]) > self._most:
                raise h11.RemoteProtocolError("", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                # RFC 9112 section 6.3: an attempt to smuggle a request past a proxy.
                raise h11.RemoteProtocolError("Content-Length beside Transfer-Encoding")
        return event


class HTTPProtocol(H11Protocol):
    """One HTTP connection of our front end."""

    server_state: State
    _deadline: asyncio.TimerHandle | None = None
    _upgraded = False
    _refusal = 0
    """The status that refuses the connection; 0: it is in."""
    _answered = False
    """It is refused, and was told."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in, or not."""
        super().connection_made(transport)
        self.conn = _Requests(self.server_state.max_head_size, self._refuse_bytes)
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
        self._upgraded = True
        # Lists, which uvicorn and wsproto do not know: each takes the last line, and one token.
        rest = [one for one in self.headers if one[0] not in (b"upgrade", b"connection")]
        self.headers = [*rest, (b"upgrade", b"websocket"), (b"connection", b"upgrade")]
        super().handle_websocket_upgrade(event)
        early, _ = self.conn.trailing_data
        if early:
            # uvicorn would forget it, and take what follows for the beginning of a frame.
            protocol: Any = self.transport.get_protocol()
            protocol.data_received(early)

    def shutdown(self) -> None:
        """End at the server's shutdown; uvicorn calls this."""
        if self._answered:
            self.transport.close()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """See to its end."""
        self._unwatch()
        super().connection_lost(exc)
        leave(self.server_state, self.client)

    def _should_upgrade(self) -> bool:
        """Whether a WebSocket is asked for; `RelayProtocol` refuses what asks wrongly."""
        return handshake.asks(self.headers)

    def _watch_head(self) -> None:
        if self._answered:
            return
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

    def _refuse_bytes(self, status: int, why: str) -> None:
        """Refuse what is no HTTP, or too much; a request before it gets no other answer."""
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            most = self.server_state.max_head_size
            why = f"the head of a request has more than {most} bytes (max_head_size)"
        else:
            why, _, _ = why.partition(":")  # behind it h11 quotes, and there may be a secret in it
            why = f"not HTTP/1.1: {why}"
        host = self.client[0] if self.client else None
        lines = self.server_state.admission.lines
        lines.warning(self.loop.time(), "%s: %d: %s", host, status, why, client=host)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(status, f"{why}\n")
        else:
            self.transport.close()

    def _refuse(self, status: int, text: str = "") -> None:
        """Answer without asking the application, and close."""
        if self._answered or self.transport.is_closing():
            return
        self._answered, self._refusal = True, status
        self._unset_keepalive_if_required()
        self._unwatch()
        self._deadline = turn_away(self.transport, self.loop, status, text)
