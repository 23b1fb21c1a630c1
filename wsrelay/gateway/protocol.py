"""uvicorn's wsproto protocol, which hands relayed connections over at their upgrade."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol
from uvicorn.server import ServerState
from wsproto import events
from wsproto.connection import ConnectionState

from wsrelay.relay.direct_connection import DIRECT, DirectConnection, HandOver
from wsrelay.relay.rate_limited_log import RateLimitedLog
from wsrelay.session import handshake
from wsrelay.values.printable import printable

from .direct import DirectProtocol
from .errors import Errors
from .http import SharedState, leave, outgoing, turn_away
from .outgoing import Outgoing

__all__ = ["RelayProtocol"]

_refusals = RateLimitedLog(logging.getLogger(__name__))

_EARLY: Final = 64 * 1024
"""Bytes that a client may send before its upgrade is accepted, though it should send none."""


class RelayProtocol(WSProtocol):
    """A WebSocket connection of our front end: until its upgrade, or to its end if not relayed."""

    _deadline: asyncio.TimerHandle | None = None

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._state = server_state
        self._asked = False
        self._offered: Any = []
        """The WebSocket extensions that the client offers."""
        self._early = b""
        self._due: events.Ping | None = None
        """The client's newest ping, while its pong waits for room."""
        self._outgoing: Outgoing | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take over the connection from uvicorn's HTTP protocol."""
        super().connection_made(transport)
        if isinstance(self._state, SharedState):
            self.logger: Any = Errors(self.client)

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up."""
        if self._deadline is not None:
            self._deadline.cancel()
        if self._outgoing is not None:
            self._outgoing.close()
        super().connection_lost(exc)
        leave(self._state, self.client)

    def data_received(self, data: bytes) -> None:
        """Process bytes; those that arrive before the upgrade wait for it."""
        refused = (ConnectionState.REJECTING, ConnectionState.CLOSED)
        if self.response_started or self.conn.state in refused:
            return  # its response may still be on its way: nothing more is accepted
        if not self._asked:
            self._ask(data)
        elif self.handshake_complete:
            data, self._early = self._early + data, b""
            super().data_received(data)
        elif len(self._early) + len(data) > _EARLY:
            self.transport.abort()
        else:
            self._early += data

    def _ask(self, head: bytes) -> None:
        """Process the request's head, or refuse it if it is not a handshake."""
        http: Any = self.transport.get_protocol()  # uvicorn's, which has parsed the head
        scope = http.scope
        problem = handshake.problem(scope["method"], scope["http_version"], scope["headers"])
        if problem is None:
            super().data_received(head)
            return
        status, reason = problem
        path, reason = printable(scope["path"]), printable(reason)
        host = self.client[0] if self.client else None
        _refusals.warning(
            self.loop.time(), "%s: %d: no upgrade: %s", path, status, reason, client=host
        )
        if isinstance(self._state, SharedState):
            self._state.numbers.refused["handshake"] += 1
        self.response_started = True
        text = f"Not a WebSocket upgrade: {reason}\n"
        self._deadline = turn_away(self.transport, self.loop, status, text)

    def handle_connect(self, event: events.Request) -> None:
        """Offer the connection to the middleware through the scope."""
        self._asked = True
        super().handle_connect(event)
        extensions: Any = self.scope["extensions"]
        extensions[DIRECT] = self._claim
        self._offered = event.extensions

    def handle_ping(self, event: events.Ping) -> None:
        """Answer a ping; a client that reads nothing gets one pong, later, and is not read."""
        if self.writable.is_set():
            super().handle_ping(event)
            return
        self._due = event
        if not self.read_paused and not self.transport.is_closing():
            self.read_paused = True
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        """Note that the transport's buffer has room again."""
        super().resume_writing()
        due, self._due = self._due, None
        if due is None or self.close_sent or self.transport.is_closing():
            return
        super().handle_ping(due)
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()

    async def send(self, message: Any) -> None:
        """Process an ASGI event; after the upgrade, also the bytes that arrived before it."""
        await super().send(message)
        if self.response_started and isinstance(self._state, SharedState):
            if self._outgoing is None:
                self._outgoing = outgoing(self.transport, self._state, self.client)
            self._outgoing.look()
        if self._early and self.handshake_complete:
            self.loop.call_soon(self._take_early)

    def _take_early(self) -> None:
        if self._early and not self.transport.is_closing():
            self.data_received(b"")

    def _claim(self) -> HandOver:
        """Negotiate no extensions, whatever the server's options: `DirectProtocol` reads none.

        wsproto keeps this same list, and accepts nothing that is not in it.
        """
        self._offered.clear()
        return self._hand_over

    def _hand_over(self, connection: DirectConnection) -> DirectProtocol:
        """Hand the connection over to the relay and keep nothing of it here."""
        self.stop_keepalive()
        self.connections.discard(self)
        extensions: Any = self.scope["extensions"]
        del extensions[DIRECT]  # it refers to this object, which is to be freed now
        direct = DirectProtocol(
            self.transport, connection, self.config, self._state, self.client, self._early
        )
        self.connections.add(direct)  # type: ignore[arg-type]
        self.transport.set_protocol(direct)
        self.transport = _HandedOver()
        self.handshake_complete = True  # else uvicorn answers 500 if the client has left
        return direct


class _HandedOver(asyncio.Transport):
    """The transport left to uvicorn's protocol, which closes it when the application returns."""

    def close(self) -> None:
        """Do nothing."""

    def is_closing(self) -> bool:
        """Return True, so that nothing is written."""
        return True
