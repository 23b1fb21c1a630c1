"""uvicorn's HTTP/1.1 protocol with the bounds that apply before a request is read.

A connection too many is refused at once, and a request's head as soon as it is too large; if the
head does not arrive in time, the connection is cut off. By then nothing is known of the client, and
nothing has been asked of the application.
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
from wsrelay.values.numbers import Numbers
from wsrelay.values.server_options import ServerOptions

from .admission import Admission
from .errors import Errors
from .outgoing import Outgoing

__all__ = ["HTTPProtocol", "SharedState", "end_our_side", "leave", "outgoing", "turn_away"]

_LINGER: Final = 2.0
"""Seconds that a refused client gets to read its response."""


_TOO_MUCH: Final = "too much of what clients have begun is unfinished (max_buffered)"


class SharedState(ServerState):
    """What the connections of one server share."""

    def __init__(
        self, admission: Admission, options: ServerOptions, buffered: Buffered, numbers: Numbers
    ) -> None:
        super().__init__()
        self.numbers = numbers
        self.admission = admission
        self.options = options
        self.buffered = buffered

    def tell(self, client: tuple[str, int] | None, what: str) -> None:
        """Log why a client is turned away, at a limited rate."""
        now = asyncio.get_running_loop().time()
        host = client[0] if client else None
        self.admission.lines.warning(now, "%s: %s", host, what, client=host)


def leave(state: ServerState, client: tuple[str, int] | None) -> None:
    """Count a connection out; a uvicorn server other than ours does not count them."""
    if isinstance(state, SharedState):
        state.admission.leave(client[0] if client else None)


def outgoing(
    transport: asyncio.Transport, state: SharedState, client: tuple[str, int] | None
) -> Outgoing:
    """Return an `Outgoing` for a response that its client does not read."""

    def give_up(why: str) -> None:
        state.tell(client, why)

    return Outgoing(transport, state.buffered, state.options.response_timeout, give_up)


def end_our_side(transport: asyncio.Transport) -> bool:
    """Send EOF and keep reading; returns whether that is possible: TLS cannot be half closed."""
    if transport.is_closing() or not transport.can_write_eof():
        return False
    try:
        transport.write_eof()
    except OSError:
        return False  # the client is gone, as `connection_lost` is about to report
    return True


def turn_away(
    transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, status: int, text: str = ""
) -> asyncio.TimerHandle:
    """Answer a client and end the connection; returns the timer that drops it if the client stays.

    The caller must read and drop what the client still sends: closing the socket with unread bytes
    would make the kernel send RST, which overtakes the response. TLS takes care of that itself.
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
    """h11's server side, which reports errors to `refuse` instead of raising them.

    A head is limited in bytes, however it arrives: h11 itself limits only incomplete ones.
    """

    def __init__(self, most: int, buffered: Buffered, refuse: Callable[[int, str], None]) -> None:
        super().__init__(h11.SERVER, most)
        self._most = most
        self._buffered = buffered
        self._refuse = refuse

    def next_event(self) -> Any:
        """Return the next event, as `h11.Connection` does; a refused client causes no more."""
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
    """The status that refuses the connection; 0: it is admitted."""
    _answered = False
    """It was refused, and the response is sent."""
    _next_look: asyncio.TimerHandle | None = None
    _heard = False
    """Part of a body has arrived since the last check."""
    _kept = 0
    """Bytes of a body that are counted as buffered."""
    _outgoing: Outgoing | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the connection, or refuse it."""
        super().connection_made(transport)
        state, host = self.server_state, self.client[0] if self.client else None
        self.logger: Any = Errors(self.client)
        self.conn = _Requests(state.options.max_head_size, state.buffered, self._refuse_bytes)
        self._refusal = state.admission.enter(host, self.loop.time())
        if not self._refusal:
            self._watch()
            return
        is_one = self._refusal == HTTPStatus.TOO_MANY_REQUESTS
        state.numbers.hit["max_connections_per_ip" if is_one else "max_connections"] += 1
        if state.admission.overrun:
            transport.abort()
        else:
            # Clients do not expect a response before they have sent a request.
            self._deadline = self.loop.call_later(_LINGER, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Process bytes; the first one of a request starts the deadline of its head."""
        if self._refusal:
            self._refuse(self._refusal)
            return
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        super().pause_writing()
        self._look_out()

    def resume_writing(self) -> None:
        """Note that the transport's buffer has room again."""
        super().resume_writing()
        if self._outgoing is not None:
            self._outgoing.look()

    def on_response_complete(self) -> None:
        """Watch what the client has not read of the response; uvicorn calls this."""
        self._keep(0)
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._look_out()
        self._watch()  # the next request may have arrived already

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over to the WebSocket protocol, which handles its end."""
        self._upgraded = True
        self._forget()
        # These may be lists, which uvicorn and wsproto do not expect: each takes the last line, and
        # one token.
        rest = [one for one in self.headers if one[0] not in (b"upgrade", b"connection")]
        self.headers = [*rest, (b"upgrade", b"websocket"), (b"connection", b"upgrade")]
        super().handle_websocket_upgrade(event)
        early, _ = self.conn.trailing_data
        if early:
            # uvicorn would lose it, and take what follows for the beginning of a frame.
            protocol: Any = self.transport.get_protocol()
            protocol.data_received(early)

    def shutdown(self) -> None:
        """Close at the server's shutdown; uvicorn calls this."""
        if self._answered:
            self.transport.close()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up."""
        self._forget()
        super().connection_lost(exc)
        leave(self.server_state, self.client)

    def _should_upgrade(self) -> bool:
        """Whether a WebSocket is asked for; `RelayProtocol` refuses malformed requests for one."""
        return handshake.asks(self.headers)

    def _watch(self) -> None:
        """Enforce the deadlines of a request: for its head, and then for the parts of its body.

        There are none while we wait for the application or, within `keep_alive`, between requests.
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
        """Stop watching and counting."""
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
        """Give up a client that has sent nothing of a body since the last check."""
        self._next_look = None
        if self._answered or self.conn.their_state is not h11.SEND_BODY:
            return
        if self._heard or self._waits():
            self._look_later()
        else:
            timeout = self.server_state.options.body_timeout
            why = f"nothing of the request's body came for {timeout:g} s (timeouts.body)"
            self._give_up(HTTPStatus.REQUEST_TIMEOUT, why)

    def _keep(self, size: int) -> None:
        """Count what has arrived of a body and the application has not read yet."""
        buffered = self.server_state.buffered
        buffered.size += size - self._kept
        self._kept = size
        if buffered.refuses(size):
            self._give_up(HTTPStatus.SERVICE_UNAVAILABLE, _TOO_MUCH)

    def _look_out(self) -> None:
        """Watch the part of a response that the client has not read."""
        if self._outgoing is None:
            self._outgoing = outgoing(self.transport, self.server_state, self.client)
        self._outgoing.look()

    def _refuse_bytes(self, status: int, why: str) -> None:
        """Refuse what is not HTTP or too much; an earlier request gets no other response."""
        if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            most = self.server_state.options.max_head_size
            why = f"the head of a request has more than {most} bytes (max_head_size)"
        elif status == HTTPStatus.SERVICE_UNAVAILABLE:
            why = _TOO_MUCH
        else:
            why, _, _ = why.partition(":")  # what h11 quotes after it may be a secret
            why = f"not HTTP/1.1: {why}"
        self._give_up(status, why)

    def _give_up(self, status: int, why: str) -> None:
        """End the connection, with a response if none has begun."""
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
