"""A client of nats-py that has one server and one life."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from msgspec import Struct
from msgspec.structs import replace
from nats.aio.client import Client, RawCredentials
from nats.aio.msg import Msg
from nats.errors import Error, NoServersError

from wsrelay.cluster.ports import Unavailable
from wsrelay.errors import CannotJoin
from wsrelay.peers.options import Cluster, ClusterTLS, without_secrets

from .socket import NatsSocket, PlainText

__all__ = ["NatsAddress", "NatsClient", "configured_servers", "explained"]

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT: Final = 1.0
"""Seconds for each step of connecting: TCP, the server's hello, TLS, its answer to ours."""

_LONGEST_CONNECT: Final = 5.0

_PING: Final = 1.0
"""Seconds between two pings."""

_SILENT_PINGS: Final = 2
"""So many pings without anything read, and the time for one more, are a hung connection."""

_EVER: Final = 1e6
"""A client of nats-py stops reading when what it has waited for in vain comes after all."""

_NOT_LET_IN: Final = ("authorization violation", "authentication expired", "authentication revoked")


class NatsAddress(Struct, frozen=True):
    """One server of NATS and how it knows this node; `hostname` is what its certificate has."""

    address: str
    hostname: str | None
    user: str | None = None
    password: str | None = None
    token: str | None = None


def configured_servers(cluster: Cluster) -> list[NatsAddress]:
    """Return the servers that the options name."""
    servers = []
    for url in cluster.servers:
        parts = urlsplit(url)
        user, password = parts.username, parts.password
        servers.append(
            NatsAddress(
                without_secrets(url),
                (cluster.tls and cluster.tls.hostname) or parts.hostname,
                cluster.user or (unquote(user) if user and password is not None else None),
                cluster.password or (unquote(password) if password else None),
                cluster.token or (unquote(user) if user and password is None else None),
            )
        )
    return servers


class NatsClient:
    """A connection to one server, until it is lost; `on_lost` is told why as soon as it is.

    `on_error` gets what the server says against what was sent, such as a missing permission.
    """

    def __init__(
        self,
        server: NatsAddress,
        on_lost: Callable[[str], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self.server = server
        self._on_lost: Callable[[str], None] | None = on_lost
        self._on_error = on_error
        self._client = Client()
        self._failure: Exception | None = None
        self._watch: asyncio.Task[None] | None = None
        self._round_trips: set[asyncio.Task[float]] = set()

    @property
    def max_payload(self) -> int:
        """Bytes that the server takes in one message."""
        return self._client.max_payload

    @property
    def discovered(self) -> list[NatsAddress]:
        """The other servers of its cluster, as it has told them."""
        return [
            replace(self.server, address=without_secrets(uri.geturl()))
            for uri in self._client.discovered_servers
        ]

    async def connect(self, cluster: Cluster, name: str) -> None:
        """Connect as the cluster's options say; `name` is shown by NATS to its operators.

        Raises whatever nats-py does; `explained` says what that means.
        """
        tls = cluster.tls or (ClusterTLS() if cluster.encrypted else None)
        self.socket = NatsSocket(self._socket_is_gone, encrypted=tls is not None)
        self._client._transport = self.socket  # noqa: SLF001 - it takes one, and has no option for it
        try:
            async with asyncio.timeout(_LONGEST_CONNECT):
                await self._connect(cluster, name, tls)
        except BaseException as error:
            self.abort()
            if isinstance(error, NoServersError) and self._failure is not None:
                raise self._failure from None
            raise
        self._watch = asyncio.get_running_loop().create_task(self._watch_over())

    async def subscribe(self, subject: str, callback: Callable[[Msg], None]) -> None:
        """Call back with what comes; what the callback raises is logged."""

        async def deliver(message: Msg) -> None:
            try:
                callback(message)
            except Exception:
                logger.exception("what came on %s was not taken", message.subject)

        await self._client.subscribe(subject, cb=deliver)
        client = self._client  # what is published next must not overtake it
        while client.pending_data_size and client.is_connected:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)

    async def round_trip(self) -> None:
        """Wait until the server has seen everything that was sent; raises `Unavailable`."""
        answer = self._ping()
        await asyncio.wait([answer], timeout=2 * _PING)
        if not answer.done() or answer.cancelled() or answer.exception() is not None:
            raise Unavailable(f"NATS at {self.server.address} does not answer")

    async def close(self) -> None:
        """Send what was published, and disconnect."""
        self._on_lost = None
        with contextlib.suppress(Unavailable):
            await self.round_trip()
        await self.end()

    def abort(self) -> None:
        """Disconnect at once; `on_lost` is not told."""
        self._on_lost = None
        self.socket.abort()
        for task in [*self._round_trips, *([self._watch] if self._watch else [])]:
            task.cancel()

    async def end(self) -> None:
        """Disconnect at once, and wait until nothing of it runs any more."""
        self.abort()
        closing = asyncio.get_running_loop().create_task(self._client.close())
        tasks = [closing, *self._round_trips, *([self._watch] if self._watch else [])]
        ended, left = await asyncio.wait(tasks, timeout=_CONNECT_TIMEOUT)
        for task in left:
            task.cancel()
        for task in ended:
            if not task.cancelled():
                task.exception()  # a client that never was connected cannot be closed

    async def _connect(self, cluster: Cluster, name: str, tls: ClusterTLS | None) -> None:
        server = self.server
        await self._client.connect(
            server.address,
            name=name,
            error_cb=self._errs,
            closed_cb=self._closes,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_TIMEOUT,  # type: ignore[arg-type]  # seconds, not whole ones
            ping_interval=int(_EVER),
            user=server.user,
            password=server.password,
            token=server.token,
            user_credentials=_credentials(cluster),
            tls=None if tls is None else _context(tls),
            tls_hostname=server.hostname,
            tls_handshake_first=tls is not None and tls.first,
        )
        if not self._client.is_connected:  # it has hung up in the middle
            raise ConnectionResetError(str(self._failure or "the server has closed it"))
        if not self.socket.open:
            raise CannotJoin("this version of nats-py cannot be used: it takes no transport")

    def _ping(self) -> asyncio.Task[float]:
        task = asyncio.get_running_loop().create_task(self._client.rtt(timeout=int(_EVER)))
        self._round_trips.add(task)
        task.add_done_callback(self._answered)
        return task

    def _answered(self, task: asyncio.Task[float]) -> None:
        self._round_trips.discard(task)
        if not task.cancelled():
            task.exception()  # a connection that is lost is told otherwise

    async def _watch_over(self) -> None:
        """Find out when the connection is hung: nothing is read, not even answers to pings.

        It counts pings, not seconds, and so does not mistake a stall of this process for one.
        """
        ping, read, silent = self._ping(), -1, 0
        while True:
            await asyncio.sleep(_PING)
            if ping.done() or self._client.stats["in_msgs"] != read:
                read, silent = self._client.stats["in_msgs"], 0
            else:
                silent += 1
                if silent > _SILENT_PINGS:
                    self._lose(f"no answer to {silent} pings")
                    return
            if ping.done():
                ping = self._ping()

    def _lose(self, reason: str) -> None:
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(reason.removeprefix("nats: "))

    def _socket_is_gone(self, error: Exception | None) -> None:
        self._lose(str(error or self._client.last_error or "the server has closed it"))

    async def _closes(self) -> None:
        self._lose(str(self._client.last_error or "the client has closed it"))

    async def _errs(self, error: Exception) -> None:
        self._failure = error
        if self._client.is_connected:
            self._on_error(error)


def explained(error: BaseException, server: NatsAddress) -> tuple[str, bool]:
    """Return what an error of connecting means, and whether trying again is useless."""
    at = f"NATS at {server.address}"
    text = str(error).removeprefix("nats: ").strip("'\"") or type(error).__name__
    useless = True
    match error:
        case CannotJoin():
            told = str(error)
        case PlainText():
            told = f"{at} does not encrypt, and tls is set"
        case ssl.SSLCertVerificationError():
            told = f"{at} is not trusted: {error.verify_message}; tls.ca names who has signed it"
        case ssl.SSLError():
            told = f"TLS with {at} failed: {text}"
            useless = not isinstance(error, ssl.SSLEOFError)  # it may be going down
        case ModuleNotFoundError(name="nkeys"):
            told = "credentials need the package nkeys: pip install 'nats-py[nkeys]'"
        case Error() if any(phrase in text.lower() for phrase in _NOT_LET_IN):
            identity = "user, password, token or credentials are wrong or missing"
            told = f"{at} does not let this node in: {identity} ({text})"
        case _:
            useless = False
            told = f"{at}: {text}"
            if isinstance(error, TimeoutError):
                told = f"{at} does not answer"
            elif isinstance(error, OSError):
                told = f"no connection to {at}: {error.strerror or text}"
            elif "INFO" in text:
                told = f"what answers at {server.address} is not NATS"
    return told, useless


def _credentials(cluster: Cluster) -> RawCredentials | None:
    """Return the text of the credentials; nats-py reads other files for ever."""
    if cluster.credentials is None:
        return None
    try:
        text = Path(cluster.credentials).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CannotJoin(f"credentials {cluster.credentials} cannot be read: {error}") from None
    if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
        raise CannotJoin(f"credentials {cluster.credentials} is not a .creds file of NATS")
    return RawCredentials(text)


def _context(tls: ClusterTLS) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except (OSError, ValueError) as error:
        raise CannotJoin(f"tls.ca {tls.ca} cannot be used: {error}") from None
    if tls.cert is not None:
        try:
            context.load_cert_chain(tls.cert, tls.key)
        except (OSError, ValueError) as error:
            files = f"tls.cert {tls.cert}" + (f" with tls.key {tls.key}" if tls.key else "")
            raise CannotJoin(f"{files} cannot be used: {error}") from None
    return context
