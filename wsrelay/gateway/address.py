"""Binding the sockets that servers listen on."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

__all__ = ["AddressError", "bind", "bind_unix", "release", "url"]


class AddressError(Exception):
    """The address cannot be listened on; the text says which and why."""


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; an empty host means all interfaces. Raises `AddressError`."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if not host and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=2048
            )
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            why = "the address is in use; choose another port"
        raise AddressError(f"cannot listen on {shown}: {why}") from None


def bind_unix(path: Path) -> socket.socket:
    """Return a listening Unix socket that anybody may connect to; raises `AddressError`.

    One that a dead server left behind is replaced.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            _remove_stale(path)
        listener.bind(str(path))
        path.chmod(
            0o666
        )  # a proxy in front runs as another user; the folder's mode keeps others out
        listener.listen(2048)
    except OSError as error:
        listener.close()
        why = "the address is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise AddressError(f"cannot listen on unix:{path}: {why or error}") from None
    return listener


def _remove_stale(path: Path) -> None:
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def release(listener: socket.socket, path: Path | None) -> None:
    """Close a listening socket, and remove it from the file system if it has a path there."""
    listener.close()
    if path is not None:
        path.unlink(missing_ok=True)


def url(listener: socket.socket, *, tls: bool = False) -> str:
    """Return where a browser finds the server, or `unix:path`."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    host = {"": "localhost", "::": "localhost", "0.0.0.0": "localhost"}.get(host, host)  # noqa: S104 - shown only
    name = f"[{host}]" if ":" in host else host
    return f"http{'s' if tls else ''}://{name}:{port}"
