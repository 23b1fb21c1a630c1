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

from wsrelay.relay.asgi import RETRY_AFTER, response
from wsrelay.session import handshake
from wsrelay.values.buffered import Buffered

from .admission import Admission
from .errors import Errors
from .options import ServerOptions
from .outgoing import Outgoing

__all__ = ["HTTPProtocol", "SharedState", "end_our_side", "leave", "outgoing", "turn_away"]

_LINGER: Final = 2.0
"""Seconds that a refused client gets to take its answer."""


_TOO_MUCH: Final = "too much of what clients have begun is unfinished (max_buffered)"


class SharedState(ServerState):
    """What the connections of one server share."""

    def __init__(self, admission: Admission, options: ServerOptions, buffered: Buffered) -> None:
        super().__init__()
        self.admission = admission
        self.options = options
        self.buffered = buffered

    def tell(self, client: tuple[str, int] | None, what: str) -> None:
        """Say in the log why a client is sent away, as long as that is not said too often."""
        now = asyncio.get_running_loop().time()
        host = client[0] if client else None
        self.admission.lines.warning(now, "%s: %s", host, what, client=host)


def leave(state: ServerState, client: tuple[str, int] | None) -> None:
    """Count a connection out; another server of uvicorn's, into which we were put, counts none."""
    if isinstance(state, SharedState):
        state.admission.leave(client[0] if client else None)


def outgoing(
    transport: asyncio.Transport, state: SharedState, client: tuple[str, int] | None
) -> Outgoing:
    """Return what watches a response that its client does not take."""

    def give_up(why: str) -> None:
        state.tell(client, why)

    return Outgoing(transport, state.buffered, state.options.response_timeout, give_up)


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

    def __init__(self, most: int, buffered: Buffered, refuse: Callable[[int, str], None]) -> None:
        super().__init__(h11.SERVER, most)
        self._most = most
        self._buffered = buffered
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
            if self._buffered.is_full:
                raise h11.RemoteProtocolError("", HTTPStatus.SERVICE_UNAVAILABLE)
        return event


class HTTPProtocol(H11Protocol):
    """One HTTP connection of our front end."""

    server_state: SharedState
    _deadline: asyncio.TimerHandle | None = None
    _upgraded = False
    _refusal = 0
    """The status that refuses the connection; 0: it is in."""
    _answered = False
    """It is refused, and was told."""
    _next_look: asyncio.TimerHandle | None = None
    _heard = False
    """Something of a body has come since the last look."""
    _kept = 0
    """Bytes of a body that are counted."""
    _outgoing: Outgoing | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Let it in, or not."""
        super().connection_made(transport)
        state, host = self.server_state, self.client[0] if self.client else None
        self.logger: Any = Errors(self.client)
        self.conn = _Requests(state.options.max_head_size, state.buffered, self._refuse_bytes)
        self._refusal = state.admission.enter(host, self.loop.time())
        if not self._refusal:
            self._watch()
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
        self._watch()

    def pause_writing(self) -> None:
        """Learn that the transport holds enough."""
        super().pause_writing()
        self._look_out()

    def resume_writing(self) -> None:
        """Learn that it has room again."""
        super().resume_writing()
        if self._outgoing is not None:
            self._outgoing.look()

    def on_response_complete(self) -> None:
        """See to what the client has not read of it; uvicorn calls this."""
        self._keep(0)
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._look_out()
        self._watch()  # the next request may have come already

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection on to the WebSocket protocol, which sees to its end."""
        self._upgraded = True
        self._forget()
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
        self._forget()
        super().connection_lost(exc)
        leave(self.server_state, self.client)

    def _should_upgrade(self) -> bool:
        """Whether a WebSocket is asked for; `RelayProtocol` refuses what asks wrongly."""
        return handshake.asks(self.headers)

    def _watch(self) -> None:
        """See to it that what is due comes: the head of a request, and what follows of its body.

        Nothing is due where we wait for the application, and between requests, but for the time of
        `keep_alive`.
        """
        if self._answered:
            return
        theirs = self.conn.their_state
        if theirs is not h11.IDLE or self._upgraded or self.timeout_keep_alive_task is not None:
            self._unwatch()
        elif self._deadline is None:
            timeout = self.server_state.options.header_timeout
            self._deadline = self.loop.call_later(timeout, self._refuse, HTTPStatus.REQUEST_TIMEOUT)
        if (theirs is h11.SEND_BODY and not self._upgraded) or self._kept:
            self._heard = True
            self._keep(0 if self.cycle.response_complete else len(self.cycle.body))
            if self._next_look is None:
                self._look_later()

    def _forget(self) -> None:
        """Watch and keep nothing any more."""
        self._unwatch()
        self._keep(0)
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None
        if self._outgoing is not None:
            self._outgoing.close()
            self._outgoing = None

    def _unwatch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _look_later(self) -> None:
        if timeout := self.server_state.options.body_timeout:
            # What begins to be due before the next look is due at the one after it.
            self._heard = self._waits()
            self._next_look = self.loop.call_later(timeout, self._look_for_body)

    def _waits(self) -> bool:
        """Whether nothing is due, because the application has not asked for the body yet."""
        return self.flow.read_paused or self.cycle.waiting_for_100_continue

    def _look_for_body(self) -> None:
        """Give a client up that has sent nothing of a body for all the time since the last look."""
        self._next_look = None
        if self._answered or self.conn.their_state is not h11.SEND_BODY:
            return
        if self._heard or self._waits():
            self._look_later()
        else:
            timeout = self.server_state.options.body_timeout
            why = f"nothing of the request's body for {timeout:g} s (timeouts.body)"
            self._give_up(HTTPStatus.REQUEST_TIMEOUT, why)

    def _keep(self, size: int) -> None:
        """Count what has come of a body and the application has not taken."""
        buffered = self.server_state.buffered
        buffered.size += size - self._kept
        self._kept = size
        if buffered.refuses(size):
            self._give_up(HTTPStatus.SERVICE_UNAVAILABLE, _TOO_MUCH)

    def _look_out(self) -> None:
        """Watch what the client does not take of a response."""
        if self._outgoing is None:
            self._outgoing = outgoing(self.transport, self.server_state, self.client)
        self._outgoing.look()

    def _refuse_bytes(self, status: int, why: str) -> None:
        """Refuse what is no HTTP, or too much; a request before it gets no other answer."""
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            most = self.server_state.options.max_head_size
            why = f"the head of a request has more than {most} bytes (max_head_size)"
        elif status == HTTPStatus.SERVICE_UNAVAILABLE:
            why = _TOO_MUCH
        else:
            why, _, _ = why.partition(":")  # behind it h11 quotes, and there may be a secret in it
            why = f"not HTTP/1.1: {why}"
        self._give_up(status, why)

    def _give_up(self, status: int, why: str) -> None:
        """End the connection, with an answer where none has begun."""
        self.server_state.tell(self.client, f"{status}: {why}")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(status, f"{why}\n")
        else:
            self.transport.close()
            self._look_out()

    def _refuse(self, status: int, text: str = "") -> None:
        """Answer without asking the application, and close."""
        if self._answered or self.transport.is_closing():
            return
        self._answered, self._refusal = True, status
        self._unset_keepalive_if_required()
        self._unwatch()
        self._deadline = turn_away(self.transport, self.loop, status, text)
