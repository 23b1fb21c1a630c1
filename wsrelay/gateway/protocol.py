"""uvicorn's wsproto protocol with what the relay promises beyond it (contract section 2).

Keepalive that never takes a busy target for a dead client, and a close that a client which does
not read cannot hold up.
"""

from __future__ import annotations

from typing import Any, Final

from uvicorn.protocols.websockets.wsproto_impl import WSProtocol
from wsproto import events

from wsrelay.relay.asgi import TRANSPORT

__all__ = ["RelayProtocol"]

_LINGER: Final = 2.0
"""Seconds that a socket gets to flush what is left for a client that is given up."""


class RelayProtocol(WSProtocol):
    """One WebSocket connection of our front end."""

    _read_late = False
    """Reading was paused at some time since the last ping: a missing pong proves nothing."""

    def handle_connect(self, event: events.Request) -> None:
        """Offer `abort` to the middleware through the scope."""
        super().handle_connect(event)
        self.scope["extensions"][TRANSPORT] = {"abort": self._abort}

    def handle_message(self, event: events.TextMessage | events.BytesMessage) -> None:
        """Note that reading pauses."""
        super().handle_message(event)
        self._read_late = self._read_late or self.read_paused
        if self.close_sent:
            self._abort_later()

    def send_keepalive_ping(self) -> None:
        """Send a ping."""
        self._read_late = self.read_paused
        super().send_keepalive_ping()

    def keepalive_timeout(self) -> None:
        """Close, unless the pong may lie unread because a target is busy."""
        if self._read_late and self.ping_timeout is not None:
            self._read_late = self.read_paused
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        event: Any = {
            "type": "websocket.disconnect",
            "code": 1011,
            "reason": "keepalive ping timeout",
        }
        self.queue.put_nowait(event)
        self._abort_later()

    def shutdown(self) -> None:
        """Close with 1012 at the server's shutdown."""
        super().shutdown()
        self._abort_later()

    def _abort_later(self) -> None:
        """Let the socket flush for a while: `close()` alone waits for a client for ever."""
        self.loop.call_later(_LINGER, self._abort)

    def _abort(self) -> None:
        self.transport.abort()
