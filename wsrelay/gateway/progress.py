"""How much of what was sent to a client it has received, as the kernel reports it."""

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
    """Return a transport's socket, or None if the system does not report progress for it."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sys.platform != "linux" or sock is None or sock.family == socket.AF_UNIX:
        return None
    return sock


def bytes_acknowledged(transport: asyncio.Transport) -> int:
    """Return how many bytes the client's TCP has acknowledged; 0 if the system does not say."""
    sock = tcp_socket(transport)
    if sock is None:
        return 0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
    return int.from_bytes(info[_BYTES_ACKED], sys.byteorder)


def bytes_unsent(transport: asyncio.Transport) -> int:
    """Return how many bytes wait for the client, here and in the kernel."""
    queued = array.array("i", [0])
    sock = tcp_socket(transport)
    if sock is not None:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
    return transport.get_write_buffer_size() + queued[0]
