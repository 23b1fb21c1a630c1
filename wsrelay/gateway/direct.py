"""A relayed WebSocket connection after its upgrade: from bytes to messages and back.

Whole messages, pings and pongs are parsed here, all other frames by wsproto. It keeps the promises
that a portable server does not make ("Under which server" in `docs/semantics.md`): keepalive that
never mistakes a busy target for a dead client, and a close that cannot be held up by a client that
does not read.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import Callable
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.websockets.wsproto_impl import FrameTooLargeError, WebsocketBuffer
from uvicorn.server import ServerState
from wsproto import events
from wsproto.connection import Connection, ConnectionState, ConnectionType

from wsrelay.relay.connection import AHEAD
from wsrelay.relay.direct_connection import DirectConnection
from wsrelay.relay.rate_limited_log import RateLimitedLog
from wsrelay.session import machine, rfc6455
from wsrelay.session.ends import UNFINISHED, Closing
from wsrelay.values.server_options import ServerOptions

from .http import SharedState, end_our_side, leave
from .masking import apply_mask, unmask
from .progress import bytes_acknowledged, bytes_unsent, tcp_socket

__all__ = ["DirectProtocol"]

_refusals = RateLimitedLog(logging.getLogger(__name__))

_DEFAULTS: Final = ServerOptions()
"""The options if a uvicorn server other than ours uses the protocol."""

_VANISHED: Final = 60_000
"""Milliseconds after which a client that acknowledges nothing is gone, if there are no pings."""

_LINGER: Final = 2.0
"""Seconds that a socket gets to flush what is left for a client that was given up."""

_ANSWER: Final = 0.5
"""Seconds that a client gets to answer the close frame that fails its connection.

Chromium calls a close unclean if the TCP connection ends before it has sent its close frame.
"""

_BREACHES: Final = (1002, 1007)
"""Close codes for clients that break the protocol, which may not answer either."""

_CLOSING: Final = 10.0
"""Seconds that a client gets to answer a close frame."""

_SHORT: Final = 6
"""Header bytes of a masked frame with a payload under 126 bytes, as control frames have."""

_MOST_CONTROL: Final = 125
"""The maximum payload of a control frame in bytes (RFC 6455 section 5.5)."""

_LONG: Final = 8
"""Header bytes of a masked frame with a payload under 64 KB that is not short."""

_MASKED: Final = 0x80
_LONGER: Final = _MASKED | 126
"""The second byte of a client's frame, plus its size if that is short (RFC 6455 section 5.2)."""

_AT_ONCE: Final = 128
"""Frames that are parsed in one turn of the event loop; the others wait for the next.

uvloop reads up to 8 MB in a turn, and a million fragments of one byte kept everyone else waiting
for 15 seconds.
"""

_CONTROL: Final = 0x8
"""The bit of the opcode that distinguishes control frames from data (RFC 6455 section 5.2)."""


class DirectProtocol(asyncio.Protocol):
    """One connection, taken over from `RelayProtocol`; it is the `Wire` of a `DirectConnection`."""

    __slots__ = (
        "_acknowledged",
        "_answered",
        "_buffered",
        "_client",
        "_config",
        "_connection",
        "_deadline",
        "_dropping",
        "_due",
        "_fragments",
        "_held",
        "_inside",
        "_large",
        "_loop",
        "_message_timeout",
        "_most",
        "_next_turn",
        "_over",
        "_paused",
        "_ping",
        "_ping_sent",
        "_read_late",
        "_ready",
        "_rest",
        "_since",
        "_state",
        "_timer",
        "_transport",
        "_wanted",
        "_websocket",
        "unfinished",
        "writable",
        "write",
    )

    def __init__(  # noqa: PLR0915, PLR0917 - internal, it takes over all of this
        self,
        transport: asyncio.Transport,
        connection: DirectConnection,
        config: Config,
        state: ServerState,
        client: tuple[str, int] | None,
        early: bytes,
    ) -> None:
        self.writable = True
        # It gathers the writes of a turn.
        self.write: Callable[[bytes | memoryview], None] = transport.write
        self._transport = transport
        self._connection: DirectConnection | None = connection
        self._config = config
        self._state = state
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._rest: bytes | bytearray = early
        """Bytes that have arrived and are not parsed yet; they begin with a frame."""
        self._wanted = 0
        """Bytes that `_rest` must have before parsing it is worthwhile."""
        self._inside = 0
        """Bytes still to come of a frame that goes to wsproto."""
        self._dropping = 0
        """Bytes still to come of a frame that is dropped."""
        self._websocket: Connection | None = None
        self._fragments: WebsocketBuffer | None = None
        """The beginning of a message in several frames."""
        options = _DEFAULTS
        self._buffered = connection.buffered
        if isinstance(state, SharedState):
            options, self._buffered = state.options, state.buffered
        self._message_timeout = options.message_timeout
        self.unfinished = 0
        self._since = 0.0
        """When the first byte of what is not parsed yet arrived; 0: there is none."""
        self._deadline: asyncio.TimerHandle | None = None
        """Checks whether it has been finished; usually it has long been, which costs nothing."""
        self._most = min(config.ws_max_size, machine.LARGEST)
        """Bytes of a message at most."""
        self._large = min(AHEAD, self._most)
        self._held = False
        """The target has no room: messages wait."""
        self._paused = False
        self._next_turn: asyncio.Handle | None = None
        """Continues with what is left, if there was more than is parsed at once."""
        self._due: bytes | None = None
        """The payload of the client's newest ping, while its pong waits for room."""
        self._answered = False
        """The frame that goes to wsproto is the client's close frame."""
        self._ready: DirectConnection | None = None
        """The connection while a new frame is due and there is room for its message, else None."""
        self._over = False
        """The connection is finished: whatever still arrives is ignored."""
        self._timer: asyncio.TimerHandle | None = None
        """Until the next ping, the deadline of the pong, or that of the close."""
        self._ping = b""
        """The payload of the ping that has not been answered yet."""
        self._ping_sent = 0.0
        self._acknowledged = 0
        self._read_late = False
        """Reading was held up since the last ping: a missing pong proves nothing."""
        # Have the kernel notice a client that no longer acknowledges anything. While reading is
        # paused, no pong is due; then the unacknowledged pings make it an error.
        if (sock := tcp_socket(self._transport)) is not None:
            patience = (config.ws_ping_interval or 0) + (config.ws_ping_timeout or 0)
            milliseconds = round(patience * 1000) or _VANISHED
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    # The connection's side

    def start(self) -> None:
        """Begin to process what the client sends."""
        self._schedule_ping(0.0)
        if self._rest:
            self._take(b"")

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake."""
        self._detach()
        self._say_close(code, reason, _CLOSING, self.abort)

    def resume(self) -> None:
        """Continue after a pause that `received` asked for."""
        self._held = False
        if self._since:
            self._since = self._loop.time()  # while reading is paused, nothing is due
        if self._rest:
            self._come_back()  # before more is read, which would pile up behind this
        else:
            self._read_on()

    def abort(self) -> None:
        """Drop the connection."""
        self.writable = False
        self._transport.abort()

    # The transport's side

    def data_received(self, data: bytes) -> None:
        """Process bytes from the client: here if they are one message of up to 64 KB."""
        connection, end, content = self._ready, len(data), None
        if (
            connection is not None
            and end >= _SHORT
            and ((is_text := data[0] == rfc6455.TEXT) or data[0] == rfc6455.BINARY)
        ):
            if data[1] == _MASKED + end - _SHORT < _LONGER:
                content = apply_mask(data[_SHORT:], data[_SHORT - 4 : _SHORT])
            elif (
                data[1] == _LONGER
                and _MOST_CONTROL < end - _LONG == int.from_bytes(data[2:4], "big") <= self._large
            ):
                content = unmask(data, _LONG, end)
            if content is not None and (not is_text or content.isascii() or _is_utf8(content)):
                if not connection.received(content, is_text):
                    self._held = self._read_late = True
                    self._ready = None
                return
        if not self._over:
            self._take(data)

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self.writable = False

    def resume_writing(self) -> None:
        """Note that the transport's buffer has room again."""
        self.writable = True
        if self._due is not None and not self._transport.is_closing():
            due, self._due = self._due, None
            self._transport.write(rfc6455.frame(rfc6455.PONG, due))
            self._read_on()
        if self._connection is not None:
            self._connection.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up; what the client sent before that is still processed."""
        del exc
        self._stop_timer()
        if self._connection is not None:
            self._held = self._paused = False
            self._take(b"", lost=True)
            self._end(1006)
        self._over = True
        self._forget()
        self._state.connections.discard(self)
        leave(self._state, self._client)

    def shutdown(self) -> None:
        """Close with 1012 at the server's shutdown; uvicorn calls this."""
        if self._connection is None:
            self._close_soon()
        else:
            self._end(1012, closing=Closing.SHUTDOWN)
            self._say_close(1012, "", _LINGER, self.abort)

    # Parsing frames

    def _take(self, data: bytes, *, lost: bool = False) -> None:  # noqa: C901, PLR0912, PLR0915 - the hot path
        """Process bytes as far as there is room, and keep the rest.

        With `lost`, the client is gone: nothing more will arrive, and room does not matter.
        """
        self._ready = None
        if self._rest:
            if isinstance(self._rest, bytes):
                self._rest = bytearray(self._rest)
            self._rest += data
            if len(self._rest) < self._wanted:
                self._count()
                return
            whole: bytes | bytearray = self._rest
            self._rest = b""
        else:
            whole = data
        start, end = 0, len(whole)
        self._wanted = 0
        left = end if lost else _AT_ONCE
        while start < end:
            if not left:
                self._pause()
                self._come_back()
                break
            left -= 1
            if self._inside or self._dropping:
                start = self._go_on(whole, start, end)
                continue
            measures = rfc6455.head(whole, start, end)
            if measures is None:
                self._wanted = end - start + 1
                break
            header, size, is_right = measures
            first = whole[start]
            body, stop = start + header, start + header + size
            if self._connection is None:
                if first != rfc6455.CLOSE or size > _MOST_CONTROL:
                    self._dropping = header + size
                    continue
                if stop > end:
                    self._wanted = stop - start
                    break
                self._close_soon()  # the answer to our close frame
                return
            is_data = not first & _CONTROL
            if is_data and self._held and not lost:
                self._read_late = True
                self._pause()
                break
            if (
                (first == rfc6455.TEXT or first == rfc6455.BINARY)  # noqa: PLR1714 - the hot path
                and is_right
                and self._fragments is None
            ):
                if size > self._large:
                    if size > self._most:
                        self._dropping = header + size
                        self._too_large()
                        continue
                    if not lost and not self._connection.has_room():
                        self._hold()
                        break
                if stop > end:
                    self._wanted = stop - start
                    break
                start = stop
                self._message(first, unmask(whole, body, stop))
            elif first == rfc6455.PONG and header == _SHORT and is_right and stop <= end:
                start = stop
                self._pong(unmask(whole, body, stop))
            elif first == rfc6455.PING and header == _SHORT and is_right and stop <= end:
                start = stop
                self._answer(unmask(whole, body, stop))
            elif not is_data and header == _SHORT and stop > end:
                self._wanted = stop - start  # it may be the client's close frame, not yet complete
                break
            elif is_data and not lost and not self._connection.has_room():
                self._hold()
                break
            else:
                self._inside = header + size
                self._answered = first == rfc6455.CLOSE
        if start < end:
            self._rest = whole[start:end] if start else whole
            if start and self._fragments is None:
                self._since = 0.0  # the rest is the beginning of another message
            self._count()
        elif self._since:
            self._count()
        if (
            not (self._rest or self._inside or self._dropping or self._held or self._since)
            and self._fragments is None
            and self._large >= _MOST_CONTROL
        ):
            self._ready = self._connection

    def _go_on(self, whole: bytes | bytearray, start: int, end: int) -> int:
        """Continue a frame that goes to wsproto or is dropped; returns where it ends."""
        if self._dropping:
            taken = min(self._dropping, end - start)
            self._dropping -= taken
            return start + taken
        self._since = self._since or self._loop.time()
        taken = min(self._inside, end - start)
        self._inside -= taken
        self._pass_on(bytes(whole[start : start + taken]))
        return end if self._over else start + taken

    def _message(self, first: int, data: bytes) -> None:
        """Give a whole message to the connection."""
        connection = self._connection
        assert connection is not None  # noqa: S101 - checked before
        is_text = first == rfc6455.TEXT
        if is_text and not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError as error:
                self._fail(1007, f"Invalid UTF-8: {error.reason}")
                return
        if not connection.received(data, is_text):
            self._held = self._read_late = True

    def _pass_on(self, data: bytes) -> None:
        """Give bytes of a frame to wsproto."""
        websocket = self._wsproto()
        websocket.receive_data(data)
        for event in websocket.events():
            match event:
                case events.TextMessage() | events.BytesMessage():
                    self._fragment(event)
                case events.CloseConnection():
                    self._closed(event)
            if self._connection is None:
                return

    def _fragment(self, event: events.TextMessage | events.BytesMessage) -> None:
        connection = self._connection
        assert connection is not None  # noqa: S101 - checked before
        if self._fragments is None:
            self._fragments = WebsocketBuffer(self._most)
        try:
            self._fragments.extend(event)
        except FrameTooLargeError:
            self._too_large()
            return
        if event.message_finished:
            message: Any = self._fragments.to_message()
            self._fragments = None
            text = message.get("text")
            content = message["bytes"] if text is None else text.encode()
            if not connection.received(content, text is not None):
                self._held = self._read_late = True

    def _closed(self, event: events.CloseConnection) -> None:
        """Answer the client's close frame; wsproto reports breaches of the protocol as one too."""
        if self._wsproto().state is ConnectionState.OPEN:
            self._fail(event.code, event.reason or "")
        else:
            self._send(event.response())
            self._end(event.code, event.reason or "")
            self._close_soon()

    def _wsproto(self) -> Connection:
        if self._websocket is None:
            self._websocket = Connection(ConnectionType.SERVER)
        return self._websocket

    def _send(self, event: events.Event) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._wsproto().send(event))

    # Unfinished messages

    def _count(self) -> None:
        """Count what is not parsed yet, and enforce its bounds."""
        fragments = self._fragments
        unfinished = len(self._rest) + (0 if fragments is None else fragments.length)
        self._buffered.size += unfinished - self.unfinished
        self.unfinished = unfinished
        if not unfinished and not self._inside and fragments is None:
            self._since = 0.0
            return
        if self._connection is None or self._held or self._transport.is_closing():
            return
        if not self._since:
            self._since = self._loop.time()
        if self._deadline is None and self._message_timeout:
            self._look_at(self._since + self._message_timeout)
        if self._buffered.refuses(unfinished):
            self._give_up(*UNFINISHED, "max_buffered")

    def _look_at(self, when: float) -> None:
        self._deadline = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Fail the connection if its message was not finished in time."""
        self._deadline = None
        if not self._since or self._connection is None:
            return
        now = self._loop.time()
        due = (now if self._held else self._since) + self._message_timeout
        if now < due:
            self._look_at(due)
        else:
            self._give_up(1008, "message not finished in time", "timeouts.message")

    def _give_up(self, code: int, reason: str, option: str) -> None:
        connection, host = self._connection, self._client[0] if self._client else None
        _refusals.warning(
            self._loop.time(),
            "%s: %d: %s (%s), %d bytes of %s's message have arrived",
            host,
            code,
            reason,
            option,
            self.unfinished,
            None if connection is None else connection.pid,
            client=host,
        )
        self._fail(code, reason)

    def _forget(self) -> None:
        """Discard unfinished messages."""
        self._rest = b""
        self._fragments = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._count()

    # Pauses

    def _come_back(self) -> None:
        """Continue with what is left in the next turn of the event loop."""
        if self._next_turn is None:
            self._next_turn = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._next_turn = None
        self.data_received(b"")
        self._read_on()

    def _hold(self) -> None:
        """Wait for the target before taking in a message that may be too large to read ahead."""
        self._held = self._read_late = True
        self._pause()

    def _pause(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        """Resume reading, unless more is left than the beginning of a frame."""
        waits = self._next_turn is not None or (self._held and self._rest)
        if self._paused and self._due is None and not waits:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # Keepalive

    def _schedule_ping(self, elapsed: float) -> None:
        if interval := self._config.ws_ping_interval:
            self._timer = self._loop.call_later(max(interval - elapsed, 0), self._send_ping)

    def _send_ping(self) -> None:
        if self._transport.is_closing():
            return
        self._read_late = self._held
        self._acknowledged = bytes_acknowledged(self._transport)
        self._ping = random.randbytes(4)  # noqa: S311 - not a secret
        self._ping_sent = self._loop.time()
        self._transport.write(rfc6455.frame(rfc6455.PING, self._ping))
        timeout = self._config.ws_ping_timeout
        if timeout is None:
            self._schedule_ping(0.0)
        else:
            self._timer = self._loop.call_later(timeout, self._no_pong)

    def _pong(self, payload: bytes) -> None:
        if self._ping and payload == self._ping:
            self._ping = b""
            if self._connection is not None and self._config.ws_ping_timeout is not None:
                self._stop_timer()
                self._schedule_ping(self._loop.time() - self._ping_sent)

    def _no_pong(self) -> None:
        """Close, unless the ping or its pong may still be on its way.

        The pong may be unread because a target is busy, and the ping may be queued behind what a
        slow client is reading bit by bit.
        """
        if self._transport.is_closing():
            return
        taking = bytes_acknowledged(self._transport) != self._acknowledged and bytes_unsent(
            self._transport
        )
        # No pong can come in the middle of a frame, whose rest has a deadline of its own.
        arriving = self._inside or self._wanted
        if self._read_late or taking or arriving:
            # Send another ping, not only wait longer: that fails if the client has vanished.
            self._send_ping()
        else:
            self._fail(1011, "keepalive ping timeout")

    def _answer(self, ping: bytes) -> None:
        """Answer a ping; a client that reads nothing gets one pong, later (RFC 6455 section 5.5.3).

        Until then it is not read either, so that it cannot cause what it does not take.
        """
        if not self.writable:
            self._due = ping
            self._pause()
        elif not self._transport.is_closing():
            self._transport.write(rfc6455.frame(rfc6455.PONG, ping))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # Ends

    def _too_large(self) -> None:
        assert self._connection is not None  # noqa: S101 - else what comes is dropped
        self._connection.numbers.hit["message_size"] += 1
        self._fail(1009, f"Message exceeds the maximum size ({self._most} bytes)")

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455 section 7.1.7)."""
        self._end(code, reason, Closing.RELAY)
        patience = 0 if code in _BREACHES else _ANSWER
        self._say_close(code, reason, patience, self._end_our_side)
        if self._answered:
            self._close_soon()

    def _say_close(
        self, code: int, reason: str, patience: float, expired: Callable[[], object]
    ) -> None:
        """Send our close frame; the connection ends with the client's, or at a deadline.

        Whatever the client still sends is read and dropped: closing the socket with unread bytes
        would make the kernel send RST, which overtakes the close frame.
        """
        if not self._transport.is_closing():
            self._send(events.CloseConnection(code=code, reason=reason))
            self._timer = self._loop.call_later(patience, expired)
            self._due = None  # nothing follows a close frame
            self.resume()

    def _end_our_side(self) -> None:
        """Send EOF to a client that does not answer (RFC 6455 section 7.1.1)."""
        end_our_side(self._transport)
        self._timer = self._loop.call_later(_LINGER, self.abort)

    def _end(self, code: int, reason: str = "", closing: Closing = Closing.CLIENT) -> None:
        """Tell the connection that it is over, and whose doing that is."""
        connection = self._connection
        self._detach()
        if connection is not None:
            connection.gone(code, reason, closing)

    def _detach(self) -> None:
        """Ignore everything that the client still sends, except for its close frame."""
        self._connection = self._ready = None
        self._dropping += self._inside
        self._inside = self._wanted = 0
        self._fragments = None
        self._count()
        self._stop_timer()

    def _close_soon(self) -> None:
        """Close, and let the socket flush for a while: `close` alone would wait forever."""
        self._stop_timer()
        self._over = True
        self._forget()
        self._transport.close()
        self._timer = self._loop.call_later(_LINGER, self.abort)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
