"""A gate between a client and a server that can be shut without anyone being told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["Gate", "gate_to"]


class Gate:
    """What passes it, passes both ways, as long as both are open."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self.connections = 0
        self.clients_pass = asyncio.Event()
        """What clients send is passed on."""
        self.servers_pass = asyncio.Event()
        """What the server sends is passed on."""
        self.refuses = False
        """Connections are cut as soon as they are there."""
        self.answers_are_lost = False
        """What the server sends is thrown away."""
        self._server_port = port
        self._writers: list[asyncio.StreamWriter] = []
        self.open()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def shut(self) -> None:
        """Hold what is sent, both ways, as a network that is away does."""
        self.clients_pass.clear()
        self.servers_pass.clear()

    def open(self) -> None:
        """Pass on everything, and what has been held meanwhile."""
        self.refuses = False
        self.clients_pass.set()
        self.servers_pass.set()

    def refuse(self) -> None:
        """Cut all connections, now and as they come."""
        self.refuses = True
        self.cut()

    def cut(self) -> None:
        """Cut all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuses:
            writer.transport.abort()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._writers += [writer, inner_writer]
        async with asyncio.TaskGroup() as both:
            both.create_task(self._pass(reader, inner_writer, of_client=True))
            both.create_task(self._pass(inner_reader, writer, of_client=False))

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, of_client: bool
    ) -> None:
        passing = self.clients_pass if of_client else self.servers_pass
        with contextlib.suppress(OSError):
            while True:
                await passing.wait()
                if not (data := await reader.read(65536)):
                    break
                await passing.wait()
                if not of_client and self.answers_are_lost:
                    continue
                if writer.transport.is_closing():
                    break
                writer.write(data)
        writer.transport.abort()


@contextlib.asynccontextmanager
async def gate_to(port: int) -> AsyncIterator[Gate]:
    """A gate to the server on that loopback port."""
    gate = Gate(port)
    server = await asyncio.start_server(gate.accept, "127.0.0.1", 0)
    gate.port = server.sockets[0].getsockname()[1]
    try:
        yield gate
    finally:
        server.close()
        gate.open()
        gate.cut()
        await asyncio.sleep(0)
