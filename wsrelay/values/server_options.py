"""How a server treats its connections."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from msgspec import Struct

from .bounds import MOST, Bounds, check
from .buffered import MAX_BUFFERED, Buffered

__all__ = ["ServerOptions"]

_BOUNDS: Final = {
    "max_message_size": Bounds(1, MOST, "1 byte or more", whole=True),
    "max_head_size": Bounds(1024, MOST, "1KB or more", whole=True),
    "max_connections": Bounds(0, MOST, "0 or more (0: any number)", whole=True),
    "max_connections_per_ip": Bounds(0, MOST, "0 or more (0: any number)", whole=True),
    "max_buffered": MAX_BUFFERED,
    "header_timeout": Bounds(1e-9, MOST, "more than 0 seconds"),
    "message_timeout": Bounds(0, MOST, "0 seconds or more (0: any time)"),
    "body_timeout": Bounds(0, MOST, "0 seconds or more (0: any time)"),
    "response_timeout": Bounds(0, MOST, "0 seconds or more (0: any time)"),
    "keep_alive": Bounds(0, MOST, "0 seconds or more"),
    "ping_interval": Bounds(0, MOST, "0 seconds or more (0: no pings)"),
    "ping_timeout": Bounds(1e-9, MOST, "more than 0 seconds"),
}


class ServerOptions(Struct, frozen=True, kw_only=True):
    """How a server treats its connections: sizes in bytes, times in seconds.

    `max_head_size` is for a request line and headers (some 600 bytes in a browser's upgrade), and
    `header_timeout` for receiving them, from their first byte on, and for the TLS handshake.
    `message_timeout` is for receiving a WebSocket message from its first byte on, while it is being
    read. `body_timeout` is how long a client may pause within a request's body, `response_timeout`
    how long it may accept nothing of a response; 0 turns these three off. `max_connections` and
    `max_connections_per_ip` of 0 mean any number. `max_buffered` is what all clients together may
    have begun and not finished (see `Buffered`). `cert` and `key` are PEM files. Raises
    `InvalidOptions`, a `ValueError`, with everything that is out of bounds.
    """

    max_message_size: int = 16 * 1024 * 1024
    max_head_size: int = 64 * 1024
    max_connections: int = 10_000
    max_connections_per_ip: int = 1_000
    max_buffered: int = Buffered().most
    header_timeout: float = 10.0
    message_timeout: float = 120.0
    body_timeout: float = 60.0
    response_timeout: float = 60.0
    keep_alive: float = 5.0
    ping_interval: float = 20.0
    ping_timeout: float = 20.0
    cert: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of bounds."""
        check(self, _BOUNDS)
