"""What a NATS client of nats-py writes to and reads from: one socket that is never waited for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Final
from urllib.parse import ParseResult

from nats.aio.transport import Transport

__all__ = ["NatsSocket", "PlainText"]

_CHUNK: Final = 256 * 1024
"""Bytes that are parsed at once: a piece of a large frame is one of them."""

_UNACKNOWLEDGED: Final = 3000
"""Milliseconds that what was sent may stay unacknowledged by the other machine."""

_LARGE: Final = 16 * 1024
"""Bytes above which a payload is not copied to stand beside its head."""


class PlainText(ConnectionError):  # noqa: N818 - what has happened
    """The server does not encrypt, and nothing may be sent without."""


class NatsSocket(Transport):
    """The socket of one client; `lost` is called once, as soon as it is gone.

    nats-py's own transport is not told that, and its client waits for a socket to take everything
    before it connects again, which is minutes for one whose other machine has died. Here nothing
    waits: `drain` and `wait_closed` return at once, and `abort` closes whatever is unsent. With
    `encrypted` nothing is written before the connection is.
    """

    def __init__(self, lost: Callable[[Exception | None], None], *, encrypted: bool) -> None:
        self._lost = lost
        self._encrypted = encrypted
        self._transport: asyncio.Transport | None = None
        self._reader = asyncio.StreamReader(limit=_CHUNK)

    def __bool__(self) -> bool:
        """Whether nats-py may use it: it makes a transport of its own otherwise."""
        return True

    @property
    def open(self) -> bool:
        """Whether it is connected to a server."""
        transport = self._transport
        return transport is not None and not transport.is_closing()

    async def connect(
        self,
        uri: ParseResult,
        buffer_size: int,  # noqa: ARG002 - nats-py's
        connect_timeout: float,
    ) -> None:
        """Connect to the server of the address."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(connect_timeout):
            self._transport, _ = await loop.create_connection(
                lambda: _Protocol(self._reader, self._lost), str(uri.hostname), int(uri.port or 0)
            )
        with contextlib.suppress(AttributeError, OSError):  # Linux has it
            plain = self._transport.get_extra_info("socket")
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED)

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,  # noqa: ARG002 - nats-py's
        connect_timeout: float,
    ) -> None:
        """Encrypt the connection; `uri` is the host that the server must be."""
        if self._transport is None:
            raise ConnectionResetError
        self._reader = asyncio.StreamReader(limit=_CHUNK)
        async with asyncio.timeout(connect_timeout):
            self._transport = await asyncio.get_running_loop().start_tls(
                self._transport,
                _Protocol(self._reader, self._lost),
                ssl_context,
                server_hostname=uri if isinstance(uri, str) else uri.hostname,
            )
        self._encrypted = False

    def publish(self, head: bytes, data: bytes) -> None:
        """Send a message whose head ends before the number of its bytes."""
        size = len(data)
        if size > _LARGE:
            self.writelines([b"%b%d\r\n" % (head, size), data, b"\r\n"])
        else:
            self.write(b"%b%d\r\n%b\r\n" % (head, size, data))

    def write(self, payload: bytes) -> None:
        """Send the bytes; they are dropped if the connection is lost."""
        if self._encrypted:
            raise PlainText
        if (transport := self._transport) is not None and not transport.is_closing():
            transport.write(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Send the bytes, as `write` does."""
        if self._encrypted:
            raise PlainText
        if (transport := self._transport) is not None and not transport.is_closing():
            transport.writelines(payload)

    async def read(self, buffer_size: int) -> bytes:  # noqa: ARG002 - nats-py's
        """Return what has come, waiting for it; nothing at the end."""
        return await self._reader.read(_CHUNK)

    async def readline(self) -> bytes:
        """Return the next line, with its end."""
        return await self._reader.readline()

    async def drain(self) -> None:
        """Do nothing: what is unsent is bounded by those who publish, and a PONG cannot wait."""

    async def wait_closed(self) -> None:
        """Do nothing: who closes a connection does not need it any more."""

    def close(self) -> None:
        """Send what was written, and close."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self._transport is not None:
            self._transport.abort()

    def at_eof(self) -> bool:
        """Whether everything was read and nothing more will come."""
        return self._reader.at_eof()


class _Protocol(asyncio.StreamReaderProtocol):
    def __init__(
        self, reader: asyncio.StreamReader, lost: Callable[[Exception | None], None]
    ) -> None:
        super().__init__(reader)
        self._lost = lost

    def eof_received(self) -> bool:
        """Close: a server that sends nothing more reads nothing more."""
        super().eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost(exc)
