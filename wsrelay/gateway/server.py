"""Running applications under uvicorn, from the bound sockets to the last closed connection."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final

import uvicorn

from wsrelay.node import Node
from wsrelay.values.buffered import Buffered
from wsrelay.values.numbers import Numbers
from wsrelay.values.server_options import ServerOptions

from .address import AddressError, Listener
from .admission import Admission
from .http import HTTPProtocol, SharedState
from .protocol import RelayProtocol

__all__ = ["FrontEnd", "Server", "ServerOptions", "on_signals"]

_GRACE: Final = 2
"""Seconds that HTTP requests get to finish once the node has ended."""


class Server(uvicorn.Server):
    """uvicorn's server on a given listener, with our WebSocket protocol.

    `buffered` is the node's count of buffered bytes, and `numbers` are its counts; with None, the
    server keeps its own. Raises `AddressError` for a certificate that cannot be used.
    """

    def __init__(
        self,
        app: Any,
        listener: Listener,
        options: ServerOptions | None = None,
        buffered: Buffered | None = None,
        numbers: Numbers | None = None,
    ) -> None:
        options = options or ServerOptions()
        config = uvicorn.Config(
            app,
            http=HTTPProtocol,
            ws=RelayProtocol,
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            ws_per_message_deflate=False,
            ws_max_size=options.max_message_size,
            ws_ping_interval=options.ping_interval,
            ws_ping_timeout=options.ping_timeout,
            timeout_keep_alive=options.keep_alive,  # type: ignore[arg-type]  # a timer takes it
            timeout_graceful_shutdown=_GRACE,
            ssl_certfile=options.cert,
            ssl_keyfile=options.key,
        )
        try:
            config.load()
        except (ssl.SSLError, OSError) as error:
            raise AddressError(f"cannot use certificate {options.cert}: {error}") from None
        super().__init__(config)
        self._state = SharedState(
            Admission(options.max_connections, options.max_connections_per_ip),
            options,
            buffered or Buffered(options.max_buffered),
            numbers or Numbers(),
        )
        self.server_state = self._state
        self.listener = listener
        self.servers: list[asyncio.base_events.Server] = []
        self._accepting = asyncio.Event()
        self._closed = False
        self._retired = False
        self._serving: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """Do everything that may fail before accepting; `start` calls it. Raises `AddressError`."""
        if self.servers or self._closed:
            return
        loop, tls = asyncio.get_running_loop(), self.config.ssl
        try:
            for sock in self.listener.sockets:
                server = await loop.create_server(
                    lambda: HTTPProtocol(self.config, self._state, {}),
                    sock=sock,
                    ssl=tls,
                    # The default for TLS handshakes is a minute.
                    ssl_handshake_timeout=self._state.options.header_timeout if tls else None,
                    backlog=self.config.backlog,
                    start_serving=False,
                )
                self.servers.append(server)
        except OSError as error:
            raise AddressError(f"cannot accept connections: {error}") from None

    async def start(self) -> None:
        """Start accepting; raises `AddressError`."""
        await self.prepare()
        self._serving = asyncio.create_task(self.serve([*self.listener.sockets]))
        accepting = asyncio.ensure_future(self._accepting.wait())
        await asyncio.wait({self._serving, accepting}, return_when=asyncio.FIRST_COMPLETED)
        accepting.cancel()
        if self._serving.done():
            self._serving.result()

    def stop_accepting(self) -> None:
        """Stop accepting connections; existing ones stay open."""
        self._closed = True
        for server in self.servers:
            server.close()
        self.listener.close()

    def retire(self, ended: Callable[[], object]) -> None:
        """Stop accepting connections, end when the last existing one has, and call `ended`."""
        self.stop_accepting()
        self._retired = True
        if self._serving is not None:
            self._serving.add_done_callback(lambda _: ended())

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end; uvicorn calls this ten times a second."""
        state = self.server_state
        is_over = self._retired and not state.connections and not state.tasks
        return await super().on_tick(counter) or is_over

    async def aclose(self) -> None:
        """Close the remaining connections, WebSockets with 1012."""
        self.should_exit = True
        if self._serving is not None:
            await self._serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Start accepting on the prepared sockets, unless already closed; uvicorn calls this."""
        for server in () if self._closed else self.servers:
            await server.start_serving()
        self.started = True
        self._accepting.set()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Leave the signals to `on_signals`; uvicorn would raise them again and end with 143."""
        return contextlib.nullcontext()


class FrontEnd:
    """A node and its servers, from the first preloaded module to the last closed connection.

    `spread` is how many seconds the shutdown takes to close all connections; it may be changed.
    """

    def __init__(self, node: Node, *, spread: float = 0.0) -> None:
        self.servers: list[Server] = []
        self._node = node
        self.spread = spread
        self._stop = asyncio.Event()
        self._loading: asyncio.Future[None] | None = None
        node.on_retire = self._retire

    @property
    def unready(self) -> str:
        """Why no client should be sent here now, in a few words; empty if they may come."""
        if self._stop.is_set():
            return "it is shutting down"
        if self._loading is None or not self._loading.done():
            return "it is starting"
        return self._node.unready

    @property
    def stopping(self) -> bool:
        """Whether the shutdown has begun."""
        return self._stop.is_set()

    async def run(self, servers: Iterable[Server], accepting: Callable[[], object]) -> None:
        """Load the node's hosts, then serve until `stop`; raises `HostFailed`, `CannotJoin`.

        `accepting` is called as soon as clients may connect.
        """
        self._loading = asyncio.ensure_future(self._node.loaded())
        try:
            await self._loading
            await self._add_all(servers)
            accepting()
            await self._stop.wait()
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
        finally:
            for server in self.servers:
                server.stop_accepting()
            await self._node.aclose(self.spread)
            await asyncio.gather(*(server.aclose() for server in self.servers))

    async def _add_all(self, servers: Iterable[Server]) -> None:
        for server in servers:
            await self.add(server)

    async def add(self, server: Server) -> None:
        """Start one more server, or close it if the shutdown has begun."""
        if self.stopping:
            server.stop_accepting()
            return
        self.servers.append(server)  # so that a shutdown in the meantime ends it too
        try:
            await server.start()
        except BaseException:
            self.servers.remove(server)
            server.stop_accepting()
            raise

    async def remove(self, server: Server) -> None:
        """Close a server and its connections, and the retired servers of the same application."""
        gone = [one for one in self.servers if one.config.app is server.config.app]
        self.servers = [one for one in self.servers if one not in gone]
        for one in gone:
            one.stop_accepting()
        await asyncio.gather(*(one.aclose() for one in gone))

    def retire(self, server: Server) -> None:
        """Let a server end when its last connection has."""

        def forget() -> None:
            if server in self.servers:
                self.servers.remove(server)

        server.retire(forget)

    def _retire(self) -> None:
        if not self.stopping:  # or it would end at once
            self.stop()

    def stop(self) -> None:
        """Shut down in order or, when called again, at once."""
        if self._stop.is_set():
            self._node.terminate_all()
            for server in self.servers:
                server.force_exit = True
        self._stop.set()
        if self._loading is not None:
            self._loading.cancel()


@contextlib.contextmanager
def on_signals(
    callback: Callable[[], object],
    handled: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> Generator[None, None, None]:
    """Call `callback` in the running event loop at each of these signals."""
    loop = asyncio.get_running_loop()
    for number in handled:
        loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
