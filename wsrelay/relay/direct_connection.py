"""A relayed connection over our own protocol: no task, no queue, nothing between it and the bytes.

The protocol calls `received`, `writable` and `gone`; the connection writes by calling `Wire`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from wsrelay.node import Mail, Node
from wsrelay.session import command
from wsrelay.session.ends import Closing
from wsrelay.session.header import RelayHeader
from wsrelay.session.machine import ConnectionState
from wsrelay.wire.relayed import relayed

from .asgi import Event, Send
from .connection import ClientPeer, ConnectionLimits, RelayedConnection

__all__ = ["DIRECT", "Claim", "DirectConnection", "HandOver", "Wire"]

DIRECT: Final = "wsrelay.direct"
"""Extension by which a server offers a `Claim`, which hands the connection over."""

_MEDIUM: Final = 126 + 2
_LARGE: Final = 65536 + 4
"""Bytes of the smallest frames to a client whose heads have 4 and 10 bytes."""


class Wire(Protocol):
    """The protocol's side of a connection that has been handed over."""

    writable: bool
    """Whether the client can take more; `DirectConnection.writable` is called when it can again."""

    write: Callable[[bytes | memoryview], None]
    """Send a frame, or a part of one."""

    unfinished: int
    """Bytes that the client has sent of a message that is not complete yet."""

    def start(self) -> None:
        """Start calling `received`, first with what the client sent early."""

    def close(self, code: int, reason: str) -> None:
        """Perform the closing handshake; the connection is not called again."""

    def resume(self) -> None:
        """Call `received` again after it has returned False."""

    def abort(self) -> None:
        """Drop the TCP connection."""


HandOver = Callable[["DirectConnection"], Wire]
"""Hand the connection over, once its upgrade has been sent."""

Claim = Callable[[], HandOver]
"""Claim the connection before its upgrade is sent, so that no extension is negotiated in it."""


class DirectConnection(RelayedConnection):
    """A relayed connection over our own protocol."""

    __slots__ = ("_ended", "_is_over", "_wire")

    def __init__(
        self, node: Node, relay: RelayHeader, limits: ConnectionLimits, peer: ClientPeer
    ) -> None:
        super().__init__(node, relay, limits, peer)
        self._wire: Wire | None = None
        self._is_over = False
        self._ended: asyncio.Future[None] | None = None

    async def serve(self, accept: Event, send: Send, claim: Claim) -> None:
        """Upgrade; from then on the connection lives independently of its caller."""
        hand_over = claim()
        if await self._upgrade(accept, send):
            self._wire = hand_over(self)
            self._flush()  # what was sent to it in the meantime
            self._wire.start()

    async def ended(self) -> None:
        """Wait until the connection has ended."""
        if not self._is_over:
            if self._ended is None:
                self._ended = self._loop.create_future()
            await self._ended

    # What the protocol calls

    def received(self, content: bytes, is_text: bool) -> bool:
        """Accept a message; returns whether there is room for another. If not, `resume` follows.

        The `content` of a text is UTF-8.
        """
        session, target = self._session, self._target
        if (head := session.head) and target.row.takes_mail:
            session.message_count += 1
            numbers = self.numbers
            numbers.messages_from_clients += 1
            numbers.bytes_from_clients += len(content)
            if target.pipe.relay(relayed(head, content, is_text)):
                return True
        else:
            self._do(session.message(content.decode() if is_text else content))
        return self.has_room()

    def has_room(self) -> bool:
        """Whether there is room for messages; if not, `resume` follows."""
        pipe = self._target.pipe
        if pipe.full:
            pipe.when_room(self.pid, self._transferred)
            return False
        return not self._session.holds

    def writable(self) -> None:
        """Resume writing: the client can take more."""
        self._flush()

    def gone(self, code: int, reason: str = "", closing: Closing = Closing.CLIENT) -> None:
        """End the connection, which is over; `code` is 1006 if the client vanished.

        `closing` says whose doing it is.
        """
        self._do(self._session.client_gone(code, reason, closing=closing))
        self._over()

    # What the node calls and the session needs

    def write_through(self, frame: bytes) -> bool:
        """Write a frame at once: the same result as through the outbox, but faster."""
        session, wire = self._session, self._wire
        if (
            wire is None
            or not wire.writable
            or session.outbox
            or session.state is not ConnectionState.OPEN
        ):
            return False
        wire.write(frame)
        session.sent += 1
        numbers, size = self.numbers, len(frame)
        numbers.messages_to_clients += 1
        numbers.bytes_to_clients += size - (
            2 if size < _MEDIUM else 4 if size < _LARGE else 10  # of the head, RFC 6455 section 5.2
        )
        return True

    def deliver(self, mail: Mail) -> bool:
        """Carry out what a process sent."""
        given = mail.command
        if (
            type(given) is command.SendCommand
            and not self._session.outbox  # where it would be held twice, as data and as a frame
            and self.write_through(given.frame)
        ):
            return True
        return super().deliver(mail)

    @property
    def unfinished(self) -> int:
        """Bytes that the client has sent of a message that is not complete yet."""
        return 0 if self._wire is None else self._wire.unfinished

    def _transferred(self) -> None:
        if self._wire is not None and not self._is_over and self.has_room():
            self._wire.resume()

    def _flush(self) -> None:
        wire, outbox = self._wire, self._session.outbox
        if wire is None or self._is_over:
            return
        while outbox and wire.writable:
            message = outbox.get()
            if type(message) is command.LargeSendCommand:  # joining them would copy it
                wire.write(message.head)
                wire.write(message.content)
            else:
                wire.write(message.frame)
            self._wrote(message)
        if self._closing is not None and not outbox and wire.writable:
            wire.close(self._closing.code, self._closing.reason)
            self._wrote_close()
            self.gone(1006)

    def _give_up(self) -> None:
        if self._wire is not None:
            self._wire.abort()

    def _over(self) -> None:
        self._is_over = True
        self._disarm()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
