"""What systemd and the like pass to a service: listening sockets, and where to send notifications.

The protocols of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3), without the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator
from typing import Final

__all__ = ["InheritedSockets", "SystemdNotifier"]

_FIRST: Final = 3
"""The descriptor of the first socket."""


class InheritedSockets:
    """The listening sockets that this process was started with, usually none.

    They stay open in the process that passed them on, so a new process takes over from an old one
    without a moment in which nobody is listening.
    """

    def __init__(self) -> None:
        mine = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
        count = os.environ.pop("LISTEN_FDS", "0")
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        self._sockets: list[tuple[str, socket.socket]] = []
        for i in range(int(count) if mine and count.isdecimal() else 0):
            listener = socket.socket(fileno=_FIRST + i)
            listener.set_inheritable(False)
            self._sockets.append((names[i] if i < len(names) else "", listener))

    def take(self, name: str, address: object) -> socket.socket | None:
        """Remove and return the socket with that name or address; None if there is none.

        `address` is a port or a Unix socket's path.
        """
        for i, (given, listener) in enumerate(self._sockets):
            if given == name or _address(listener) == str(address):
                del self._sockets[i]
                return listener
        return None

    def take_any(self) -> socket.socket | None:
        """Remove and return the first socket; None if there is none."""
        return self._sockets.pop(0)[1] if self._sockets else None

    def close(self) -> None:
        """Close the sockets that were not taken."""
        for _, listener in self._sockets:
            listener.close()
        self._sockets.clear()


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return str(name if listener.family == socket.AF_UNIX else name[1])


class SystemdNotifier:
    """Notifies the service manager, if there is one, of the service's state.

    The variables that say where to send are removed, so that no worker can speak for the node.
    """

    def __init__(self) -> None:
        self._path = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        mine = os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._watchdog = int(microseconds) / 1e6 if mine and microseconds.isdecimal() else 0.0

    def ready(self) -> None:
        """Notify that clients may connect, or that a reload has finished."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Notify that a reload begins."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Notify that the shutdown begins."""
        self._send("STOPPING=1")

    @contextlib.asynccontextmanager
    async def watchdog(self) -> AsyncIterator[None]:
        """Notify twice per interval that the event loop runs, if the manager wants that."""
        task = asyncio.create_task(self._beat()) if self._watchdog else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()

    async def _beat(self) -> None:
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 2)

    def _send(self, state: str) -> None:
        if not self._path:
            return
        path = f"\0{self._path[1:]}" if self._path.startswith("@") else self._path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            with contextlib.suppress(OSError):  # nobody is listening any more, or not fast enough
                sock.sendto(state.encode(), path)
