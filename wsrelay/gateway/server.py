"""Running an application under uvicorn, from the bound socket to the last closed connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Callable, Generator
from typing import Any

import uvicorn

from wsrelay.node import Node

from .protocol import RelayProtocol

__all__ = ["AddressError", "Server", "bind", "on_signals"]


class AddressError(Exception):
    """The address cannot be listened on; the text says which and why."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises `AddressError`."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            why = "the address is in use; choose another with --port"
        raise AddressError(f"cannot listen on {shown}: {why}") from None


@contextlib.contextmanager
def on_signals(callback: Callable[[], object]) -> Generator[None, None, None]:
    """Call back in the running event loop at each SIGINT and SIGTERM."""
    loop = asyncio.get_running_loop()
    handled = (signal.SIGINT, signal.SIGTERM)
    for number in handled:
        loop.add_signal_handler(number, callback)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


class Server(uvicorn.Server):
    """uvicorn's server with a node beside it.

    The first `stop` drains: no new connections, clients are closed with 1012, workers cancelled;
    a second one ends the workers at once. `ready` is called when it accepts.
    """

    def __init__(self, app: Any, node: Node, *, grace: float, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws=RelayProtocol,
                loop="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                ws_per_message_deflate=False,
                timeout_graceful_shutdown=max(1, round(grace)),
            )
        )
        self._node = node
        self._ready = ready
        self._loading: asyncio.Future[None] | None = None

    async def run_when_loaded(self, listener: socket.socket) -> None:
        """Load the node's hosts, then serve until `stop`; raises `HostFailed`."""
        self._loading = asyncio.ensure_future(self._node.loaded())
        try:
            await self._loading
        except asyncio.CancelledError:
            await self._node.aclose()
        else:
            await self.serve([listener])

    def stop(self) -> None:
        """End in order; called again, at once."""
        if self.should_exit:
            self.force_exit = True
            self._node.hurry()
        self.should_exit = True
        if self._loading is not None:
            self._loading.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start accepting."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, end the node in order, then what is left of the connections."""
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()
        await self._node.aclose()
        await super().shutdown()

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Leave the signals to `on_signals`; uvicorn would raise them again and end with 143."""
        return contextlib.nullcontext()
