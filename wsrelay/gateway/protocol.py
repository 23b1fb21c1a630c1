"""uvicorn's wsproto protocol; relayed connections are handed over at their upgrade."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol
from uvicorn.server import ServerState
from wsproto import events
from wsproto.connection import ConnectionState

from wsrelay.relay.direct_connection import DIRECT, DirectConnection, HandOver

from .direct import DirectProtocol
from .http import leave

__all__ = ["RelayProtocol"]

_EARLY: Final = 64 * 1024
"""Bytes that a client may send before it knows whether there is an upgrade; none are due."""


class RelayProtocol(WSProtocol):
    """A WebSocket connection of our front end until its upgrade, or one that is not relayed."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._state = server_state
        self._asked = False
        self._offered: Any = []
        """The WebSocket extensions that the client offers."""
        self._early = b""

    def connection_lost(self, exc: Exception | None) -> None:
        """See to its end."""
        super().connection_lost(exc)
        leave(self._state, self.client)

    def data_received(self, data: bytes) -> None:
        """Take bytes; what comes before the upgrade waits for it."""
        if self.conn.state in (ConnectionState.REJECTING, ConnectionState.CLOSED):
            return  # it is refused, and its answer may still be on its way: it may say no more
        if not self._asked:
            super().data_received(data)
        elif self.handshake_complete:
            data, self._early = self._early + data, b""
            super().data_received(data)
        elif len(self._early) + len(data) > _EARLY:
            self.transport.abort()
        else:
            self._early += data

    def handle_connect(self, event: events.Request) -> None:
        """Offer the connection to the middleware through the scope."""
        self._asked = True
        super().handle_connect(event)
        extensions: Any = self.scope["extensions"]
        extensions[DIRECT] = self._claim
        self._offered = event.extensions

    async def send(self, message: Any) -> None:
        """Take an ASGI event; after the upgrade, what came early is taken in."""
        await super().send(message)
        if self._early and self.handshake_complete:
            self.loop.call_soon(self._take_early)

    def _take_early(self) -> None:
        if self._early and not self.transport.is_closing():
            self.data_received(b"")

    def _claim(self) -> HandOver:
        """Negotiate no extension, whatever the server's options are: `DirectProtocol` reads none.

        wsproto keeps this very list, and accepts nothing that is not in it.
        """
        self._offered.clear()
        return self._hand_over

    def _hand_over(self, connection: DirectConnection) -> DirectProtocol:
        """Leave the connection to the relay; nothing of it is left here."""
        self.stop_keepalive()
        self.connections.discard(self)
        extensions: Any = self.scope["extensions"]
        del extensions[DIRECT]  # it leads back to this object, which is to go now
        direct = DirectProtocol(
            self.transport, connection, self.config, self._state, self.client, self._early
        )
        self.connections.add(direct)  # type: ignore[arg-type]
        self.transport.set_protocol(direct)
        self.transport = _HandedOver()
        self.handshake_complete = True  # uvicorn would answer 500 where the client went meanwhile
        return direct


class _HandedOver(asyncio.Transport):
    """What stays with uvicorn's protocol, which closes its transport as the application returns."""

    def close(self) -> None:
        """Do nothing."""

    def is_closing(self) -> bool:
        """Let nothing be written."""
        return True
