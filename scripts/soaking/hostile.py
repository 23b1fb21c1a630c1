"""Clients that do what no client should; whatever happens to them, nobody else may notice."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from typing import Final

__all__ = ["CLIENTS", "ROOMS", "Attacker"]

CLIENTS: Final = (
    *("unread_pongs", "short_visits", "unfinished_message", "unfinished_body"),
    *("unread_answers", "foreign_origins", "garbage"),
)
"""The methods of an `Attacker`."""

ROOMS: Final = (
    *("print", "log", "receivers", "frames", "names", "groups", "spawn", "cancel", "control"),
    *("reason", "elements", "garbage", "drain"),
)
"""The attacks that the room `hostile` (site/hostile.py) can be told to run."""

_PATIENCE: Final = 3.0
"""Seconds that an attack lasts."""


class Attacker:
    """Attacks on a node over raw connections."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("ws://").split(":")
        self._address = host, int(port)

    async def unread_pongs(self) -> None:
        """Keep sending pings and read none of the pongs."""
        async with self._upgraded("close/echo/pings") as (_, writer):
            await _flood(writer, _frame(0x9, os.urandom(125)) * 500)

    async def short_visits(self) -> None:
        """Connect and leave, over and over, in a room that computes."""
        async with self._upgraded("close/busy/visited") as (_, writer):
            writer.write(_frame(0x1, b"2"))
            for _ in range(50):
                async with self._upgraded("close/busy/visited"):
                    pass

    async def unfinished_message(self) -> None:
        """Announce a megabyte and send half of it."""
        async with self._upgraded("close/echo/half") as (reader, writer):
            writer.write(b"\x82\xff" + (1 << 20).to_bytes(8, "big") + bytes(4) + bytes(1 << 19))
            await _until_closed(reader)

    async def unfinished_body(self) -> None:
        """Announce a megabyte to an endpoint and send half of it."""
        async with self._connected() as (reader, writer):
            head = "POST /close/echo/body HTTP/1.1\r\nHost: soak\r\nContent-Length: 1048576\r\n\r\n"
            writer.write(head.encode() + bytes(1 << 19))
            await _until_closed(reader)

    async def unread_answers(self) -> None:
        """Ask for thousands of pages in one go and read none."""
        async with self._connected() as (_, writer):
            await _flood(writer, b"GET /nowhere HTTP/1.1\r\nHost: soak\r\n\r\n" * 200)

    async def foreign_origins(self) -> None:
        """Connect with long and strange origins."""
        for _ in range(50):
            origin = "Origin: http://" + "\u202e\x1b[31mx".encode().decode("latin-1") * 500
            with contextlib.suppress(ConnectionError):
                async with self._upgraded("close/echo/origin", origin):
                    pass

    async def garbage(self) -> None:
        """Send random bytes, before the upgrade and after it."""
        for opened in (self._connected(), self._upgraded("close/echo/garbage")):
            async with opened as (reader, writer):
                writer.write(os.urandom(10_000))
                await _until_closed(reader)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self._address)
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    @contextlib.asynccontextmanager
    async def _upgraded(
        self, path: str, *headers: str
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        async with self._connected() as (reader, writer):
            key = base64.b64encode(os.urandom(16)).decode()
            lines = [f"GET /{path} HTTP/1.1", "Host: soak", "Upgrade: websocket"]
            lines += ["Connection: Upgrade", "Sec-WebSocket-Version: 13"]
            lines += [f"Sec-WebSocket-Key: {key}", *headers]
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
            async with asyncio.timeout(10 * _PATIENCE):
                await reader.readline()
            yield reader, writer


def _frame(opcode: int, payload: bytes) -> bytes:
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


async def _flood(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write for as long as the node accepts it."""
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(_PATIENCE):
            while True:
                writer.write(data)
                await writer.drain()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(_PATIENCE):
            while await reader.read(4096):
                pass
