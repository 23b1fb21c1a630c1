"""How far a client has taken what was sent to it, as the kernel tells."""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import sys
import termios
from typing import Final

__all__ = ["bytes_acknowledged", "bytes_unsent", "tcp_socket"]

_BYTES_ACKED: Final = slice(120, 128)
"""`tcpi_bytes_acked` in the `tcp_info` of tcp(7)."""


def tcp_socket(transport: asyncio.Transport) -> socket.socket | None:
    """Return the socket of a transport where the system tells of it what is asked here."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sys.platform != "linux" or sock is None or sock.family == socket.AF_UNIX:
        return None
    return sock


def bytes_acknowledged(transport: asyncio.Transport) -> int:
    """Return how much the client's TCP has taken; 0 where the system does not tell."""
    sock = tcp_socket(transport)
    if sock is None:
        return 0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
    return int.from_bytes(info[_BYTES_ACKED], sys.byteorder)


def bytes_unsent(transport: asyncio.Transport) -> int:
    """Return how much waits for the client, here and in the kernel."""
    queued = array.array("i", [0])
    sock = tcp_socket(transport)
    if sock is not None:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
    return transport.get_write_buffer_size() + queued[0]
