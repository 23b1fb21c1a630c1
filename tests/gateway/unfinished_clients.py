"""Clients that begin something and do not finish it."""

from __future__ import annotations

import asyncio
import socket

from support import connected

from wsrelay.gateway.server import Server

MEGABYTE = 1_000_000

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def kept(server: Server) -> int:
    return server._state.buffered.size


OPENED: list[socket.socket] = []


async def http_socket(url: str, request: bytes) -> socket.socket:
    """A client that reads nothing by itself and holds little."""
    sock = await connected(url)
    OPENED.append(sock)
    await asyncio.get_running_loop().sock_sendall(sock, request)
    return sock
