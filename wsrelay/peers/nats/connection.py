"""A connection to NATS that is made anew whenever it is lost.

nats-py is the client, but does not reconnect: a client that has lost its server is thrown away, and
another made. What its own reconnecting does would be wrong here. It sends what was published before
the loss, or while there was no connection, to whoever reads then; it waits for the lost socket to
take what is unsent, for minutes if its machine has died; and a client whose reading task has ended
with an error looks connected for ever.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable
from typing import Final

from nats.aio.msg import Msg
from nats.errors import SlowConsumerError, StaleConnectionError

from wsrelay.cluster.ports import Unavailable
from wsrelay.errors import CannotJoin
from wsrelay.peers.options import Cluster

from .client import NatsClient, configured_servers, explained

__all__ = ["NatsConnection"]

logger = logging.getLogger(__name__)

_PAUSE: Final = 0.1
"""Seconds between two attempts, and up to as many more, so that nodes do not come all at once."""

_TELL: Final = 3.0
"""Seconds after which it is said again that NATS is away."""

_LEAST_PAYLOAD: Final = 512 * 1024
"""Bytes that a server must take in one message."""

_SUBJECT: Final = re.compile(r"[!-)+-=?-~]+")
"""What may be published to: no wildcards, nothing that would end the line."""

_MOST_HEADS: Final = 10_000
_MOST_TOLD: Final = 100

_REFUSAL: Final = "permissions violation"
"""In what the server says where this node's user must not do something."""


class NatsConnection:
    """One connection to the NATS of a cluster; `purpose` is what its log lines call it.

    `prepare` is what must succeed with each new connection before anyone is told of it; it raises
    `CannotJoin`, or `Unavailable` if it is to be tried again.
    """

    def __init__(
        self, cluster: Cluster, purpose: str, prepare: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.connected = False
        self.max_payload = _LEAST_PAYLOAD
        """Bytes that the server takes in one message."""
        self.on_connected: list[Callable[[], None]] = []
        self.on_disconnected: list[Callable[[], None]] = []
        self.on_lost: list[Callable[[str], None]] = []
        """Called with the reason when a connection is gone, also one that was being prepared."""
        self.on_refused: list[Callable[[str], None]] = []
        """Called with the server's words, in small letters."""
        self._cluster = cluster
        self._purpose = purpose
        self._prepare = prepare
        self._servers = self._configured = configured_servers(cluster)
        random.shuffle(self._servers)
        self._subscriptions: list[tuple[str, Callable[[Msg], None]]] = []
        self._client: NatsClient | None = None
        """The client whose server reads what is sent, also while it is prepared."""
        self._lost: asyncio.Future[str] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._heads: dict[str, bytes] = {}
        self._told: set[str] = set()
        self._refused: str | None = None
        """The first thing that the server has not allowed on this connection."""

    def publish(self, subject: str, data: bytes) -> None:
        """Send, without waiting; dropped while there is no connection.

        Raises `ValueError` for a subject that is none, and for more data than `max_payload`.
        """
        head = self._heads.get(subject) or self._head(subject)
        if len(data) > self.max_payload:
            raise ValueError(f"{len(data)} bytes are more than NATS takes: {self.max_payload}")
        if self._client is not None:
            self._client.socket.publish(head, data)

    def ask(self, subject: str, reply: str, headers: bytes, data: bytes) -> bool:
        """Send with headers and the subject of the answer; returns whether it was sent."""
        if self._client is None:
            return False
        head = f"{subject} {reply} ".encode()
        if headers:
            head, data = b"HPUB %b%d " % (head, len(headers)), headers + data
        else:
            head = b"PUB " + head
        self._client.socket.publish(head, data)
        return True

    async def subscribe(self, subject: str, callback: Callable[[Msg], None]) -> None:
        """Call back with what comes, from this and every later connection.

        Raises `CannotJoin` if NATS does not allow it.
        """
        self._subscriptions.append((subject, callback))
        if self._client is not None:
            await self._client.subscribe(subject, callback)
            await self.flush()

    async def flush(self) -> None:
        """Wait until the server has seen everything that was sent.

        Raises `CannotJoin` if it has refused any of it, `Unavailable` if it does not answer.
        """
        if self._client is None:
            raise Unavailable("there is no connection to NATS")
        await self._client.round_trip()
        if self._refused is not None:
            raise CannotJoin(_refusal(self._refused))

    async def open(self) -> None:
        """Connect for the first time; it stays connected from then on, until `aclose`.

        Raises `CannotJoin` if that is not possible, or not within the cluster's `timeout`.
        """
        opened = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(opened))
        try:
            await opened
        except BaseException:
            await self.aclose()
            raise

    def drop(self, reason: str) -> None:
        """Give the connection up, to get another."""
        client = self._client
        if client is not None:
            client.abort()
            self._disconnected(reason)

    async def aclose(self) -> None:
        """Send what was published, and disconnect."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        client = self._client
        self._disconnected("closed")
        if client is not None:
            await client.close()

    async def _keep(self, opened: asyncio.Future[None]) -> None:
        """Connect, and do so again whenever the connection is lost."""
        loop = asyncio.get_running_loop()
        since = told_at = loop.time()
        deadline = since + float(self._cluster.timeout)
        useless = 0
        while True:
            server = self._servers.pop(0)
            self._servers.append(server)
            self._lost = loop.create_future()
            client = NatsClient(server, self._disconnected, self._errs)
            try:
                await self._connect(client)
            except Exception as error:  # noqa: BLE001 - each is told
                self._client = None
                await client.end()
                told, is_final = explained(error, server)
                useless = useless + 1 if is_final else 0
                now = loop.time()
                if not opened.done() and (useless >= len(self._configured) or now > deadline):
                    opened.set_exception(CannotJoin(told))
                    return
                if now - told_at >= _TELL:
                    told_at = now
                    logger.warning(
                        "%s; %s has waited for it for %.0f s", told, self._purpose, now - since
                    )
            else:
                self._tell_connected(client, loop.time() - since, again=opened.done())
                if not opened.done():
                    opened.set_result(None)
                reason = await self._lost
                since = told_at = loop.time()
                logger.warning(
                    "%s has lost NATS at %s (%s), and connects again",
                    self._purpose,
                    server.address,
                    reason,
                )
                await client.end()
            await asyncio.sleep(_PAUSE * (1 + random.random()))  # noqa: S311 - no secret

    async def _connect(self, client: NatsClient) -> None:
        """Connect this client, and make it the one that is used."""
        cluster = self._cluster
        await client.connect(cluster, f"wsrelay {cluster.name}: {self._purpose}")
        if client.max_payload < _LEAST_PAYLOAD:
            raise CannotJoin(
                f"NATS at {client.server.address} takes messages of {client.max_payload} bytes; "
                f"its max_payload must be {_LEAST_PAYLOAD} or more"
            )
        self._refused = None
        for subject, callback in self._subscriptions:
            await client.subscribe(subject, callback)
        await client.round_trip()
        if self._refused is not None:
            raise CannotJoin(_refusal(self._refused))
        self.max_payload = client.max_payload
        self._client = client
        if self._prepare is not None:
            await self._prepare()
        if self._client is not client:
            raise ConnectionResetError("lost at once")
        known = {server.address for server in self._servers}
        self._servers += [server for server in client.discovered if server.address not in known]
        self.connected = True

    def _tell_connected(self, client: NatsClient, seconds: float, *, again: bool) -> None:
        at = client.server.address
        if again:
            logger.warning("%s has NATS at %s again, after %.1f s", self._purpose, at, seconds)
        else:
            logger.info("%s is connected to NATS at %s", self._purpose, at)
        _call_all(self.on_connected)

    def _disconnected(self, reason: str) -> None:
        """Stop sending; called as soon as the connection is gone."""
        was_connected, self.connected, self._client = self.connected, False, None
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(reason)
        for lost in self.on_lost:
            lost(reason)
        if was_connected:
            _call_all(self.on_disconnected)

    def _errs(self, error: Exception) -> None:
        """Log what the server says against what was sent, each once."""
        text = str(error).removeprefix("nats: ")
        if isinstance(error, StaleConnectionError | OSError):
            return  # the connection is lost, which is told
        if isinstance(error, SlowConsumerError):
            text = f"too much of {error.subject} came at once, and was dropped"
        if _REFUSAL in text:
            for refused in self.on_refused:
                refused(text)
            self._refused = self._refused or text
            text = _refusal(text)
        if text not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(text)
            logger.error("%s: %s", self._purpose, text)

    def _head(self, subject: str) -> bytes:
        """Return the beginning of a publish to the subject, which is looked at once."""
        if _SUBJECT.fullmatch(subject) is None or ".." in f".{subject}.":
            raise ValueError(f"{subject!r:.200} is not a subject to publish to")
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        head = self._heads[subject] = f"PUB {subject} ".encode()
        return head


def _refusal(text: str) -> str:
    return f"NATS refuses: {text} (docs/cluster.md has the permissions that a node needs)"


def _call_all(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:
            logger.exception("what follows a change of the connection has failed")
