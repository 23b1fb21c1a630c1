"""The control socket of one node, from the node's start to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from socket import socket
from types import TracebackType
from typing import TYPE_CHECKING, Self

from wsrelay.errors import WsrelayError
from wsrelay.node import Node

from .records import Records
from .runtime import ControlError, bind, release, runtime_directory

if TYPE_CHECKING:
    from .server import ControlServer

__all__ = ["ControlSocket"]

logger = logging.getLogger(__name__)


class ControlSocket:
    """Listens, and keeps the node's last log records; what answers is loaded when it is needed.

    That is when somebody connects for the first time. Until then a node costs a descriptor and a
    file. `directory` is the runtime directory, unless it is given.
    """

    def __init__(self, node: Node, directory: Path | None = None) -> None:
        self.path: Path | None = None
        """Where the socket is; None while there is none."""
        self._node = node
        self._directory = directory or runtime_directory()
        self._listener: socket | None = None
        self._records: Records | None = None
        self._serving: asyncio.Task[None] | None = None
        self._server: ControlServer | None = None

    def __repr__(self) -> str:
        return "its control socket"

    def start(self) -> None:
        """Listen; if no safe socket can be made, log a warning."""
        try:
            self._start()
        except ControlError as error:
            logger.warning("%s. The node runs, but 'wsrelay ps' and the like cannot find it", error)

    def _start(self) -> None:
        self._listener, self.path = bind(self._directory, self._node.name)
        self._started = time.monotonic()
        self._records = Records(self._node.pid_prefix, self._node.name)
        logging.getLogger("wsrelay").addHandler(self._records)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener.fileno(), self._connected)

    def _connected(self) -> None:
        assert self._listener is not None  # noqa: S101 - it is what has been connected to
        self._loop.remove_reader(self._listener.fileno())
        self._serving = self._loop.create_task(self._serve())

    async def _serve(self) -> None:
        server = await self._loaded()
        assert self._listener is not None  # noqa: S101 - `stop` cancels this first
        await server.serve(self._listener)

    async def _loaded(self) -> ControlServer:
        if self._server is None:
            # Some 100 ms where nothing else has loaded a server: not in the event loop's thread.
            kind = await asyncio.to_thread(_load)
            if self._records is None:
                raise WsrelayError(f"node {self._node.name} has no control socket")
            self._server = self._server or kind(self._node, self._records, self._started)
        return self._server

    async def answer(self, method: str, path: str, body: bytes, asker: str) -> tuple[int, bytes]:
        """Do what `ControlHook.answer` does, for another node of the cluster."""
        return await (await self._loaded()).answer(method, path, body, asker)

    async def stop(self) -> None:
        """Answer what was asked, and end the clients that follow the log or something else."""
        if self._records is not None:
            self._records.end()
        if self._server is not None:
            self._server.end()
        elif self._serving is not None:
            self._serving.cancel()
        if self._serving is not None:
            await asyncio.wait([self._serving])
        self.abandon()

    def abandon(self) -> None:
        """Remove the socket, also when the event loop has been closed."""
        if self._records is not None:
            logging.getLogger("wsrelay").removeHandler(self._records)
            self._records = None
        listener, self._listener = self._listener, None
        path, self.path = self.path, None
        if listener is not None and path is not None:
            if self._serving is None and not self._loop.is_closed():
                self._loop.remove_reader(listener.fileno())
            release(listener, path)

    async def __aenter__(self) -> Self:
        """Listen; raises `ControlError` if no safe socket can be made."""
        self._start()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.stop()


def _load() -> type[ControlServer]:
    from .server import ControlServer  # noqa: PLC0415 - see `ControlSocket`

    return ControlServer
