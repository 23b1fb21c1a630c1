"""The port `Bus` over NATS core."""

from __future__ import annotations

from collections.abc import Callable

from nats.aio.msg import Msg

from wsrelay.peers.options import Cluster

from .connection import NatsConnection

__all__ = ["NatsBus"]


class NatsBus:
    """The port `Bus` over NATS core; call `open` first.

    What is published goes into the socket at once, in one piece; what the socket does not take is
    kept, without a bound: those who publish bound it. A message of which the subject has no
    subscriber is lost, as is everything under way when the connection is.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._connection = NatsConnection(cluster, "the bus")
        self.on_connected = self._connection.on_connected
        self.on_disconnected = self._connection.on_disconnected
        self.publish = self._connection.publish

    @property
    def connected(self) -> bool:
        """Whether what is published now is sent."""
        return self._connection.connected

    @property
    def max_payload(self) -> int:
        """Bytes that may be published at once, at least 512 KiB; 1 MiB is NATS' default."""
        return self._connection.max_payload

    async def open(self) -> None:
        """Connect; raises `CannotJoin` if that fails for good, or within the `timeout`."""
        await self._connection.open()

    async def subscribe(self, subject: str, callback: Callable[[str, bytes], None]) -> None:
        """Call back with subject and data of what comes; the last token may be `>`.

        Raises `CannotJoin` if this node's user must not, or must not publish what it did.
        """

        def deliver(message: Msg) -> None:
            callback(message.subject, message.data)

        await self._connection.subscribe(subject, deliver)

    async def flush(self) -> None:
        """Wait until NATS has what was published; raises `CannotJoin` if it has refused any."""
        await self._connection.flush()

    async def aclose(self) -> None:
        """Send what was published, and disconnect."""
        await self._connection.aclose()
