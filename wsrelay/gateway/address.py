"""Binding the sockets that servers listen on."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
from pathlib import Path
from typing import Final

from wsrelay.session.hosts import is_loopback
from wsrelay.values.bounds import InvalidOptions

__all__ = ["AddressError", "Listener", "bind", "bind_unix", "release", "url"]

_BACKLOG: Final = 2048

_LONGEST_PATH: Final = 107 if sys.platform == "linux" else 103
"""Bytes of a Unix socket's path, without the final NUL (unix(7); less on BSD and macOS)."""

_TRIES: Final = 20
"""Free ports to try until one is free on all addresses of a host."""


class AddressError(Exception):
    """An address cannot be listened on; the message says which and why."""


class Listener:
    """What a server listens on: one socket, or one for each address of its host."""

    def __init__(self, *sockets: socket.socket) -> None:
        self.sockets = sockets

    @property
    def unix(self) -> str | None:
        """The path of a Unix socket, or None."""
        first = self.sockets[0]
        return str(first.getsockname()) if first.family == socket.AF_UNIX else None

    @property
    def names(self) -> list[tuple[str, int]]:
        """Addresses and ports; empty for a Unix socket."""
        return [] if self.unix else [sock.getsockname()[:2] for sock in self.sockets]

    @property
    def loopback(self) -> bool:
        """Whether it is a network socket that only this machine can reach."""
        return bool(self.names) and all(is_loopback(host) for host, _ in self.names)

    def dup(self) -> Listener:
        """Return a duplicate, which is closed separately."""
        return Listener(*(sock.dup() for sock in self.sockets))

    def close(self) -> None:
        """Stop listening."""
        for sock in self.sockets:
            sock.close()


def check(host: str | None, path: Path | None) -> None:
    """Raise `InvalidOptions` for a host name or a Unix socket's path that no system accepts."""
    wrong = ""
    if path is not None and len(os.fsencode(path)) > _LONGEST_PATH:
        wrong = f"unix:{path} is too long: a socket's path has at most {_LONGEST_PATH} bytes"
    elif path is None:
        try:
            (host or "").encode("idna")
        except UnicodeError:
            wrong = f"{host!r:.80} is not a host name: a part is empty or over 63 characters"
    if wrong:
        raise InvalidOptions([("addr", wrong)])


def bind(host: str, port: int) -> Listener:
    """Listen on all addresses of a host, on one port; raises `AddressError`.

    An empty host means all interfaces, and so does `::`, which accepts IPv4 as well. `localhost`
    means both loopback addresses, as in browsers, whatever the resolver says. IPv6 addresses may be
    in brackets.
    """
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        check(host, None)
        return Listener(*_sockets(host, port))
    except InvalidOptions as error:
        raise AddressError(f"cannot listen on {shown:.80}: {error.problems[0][1]}") from None
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            why = "the address is in use; choose another port"
        raise AddressError(f"cannot listen on {shown}: {why}") from None


def _sockets(host: str, port: int) -> list[socket.socket]:
    if host in ("", "::") and socket.has_dualstack_ipv6():
        everywhere = ("", port)
        return [_socket(socket.AF_INET6, everywhere, dualstack_ipv6=True)]
    addresses = _addresses(host, port)
    for _ in range(_TRIES):
        try:
            return _all(addresses, port)
        except OSError as error:
            # A port that is free on one address is not always free on the next.
            if port or error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    if host == "localhost":
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(name[0])) for family, _, _, _, name in found))


def _all(addresses: list[tuple[socket.AddressFamily, str]], port: int) -> list[socket.socket]:
    """Listen on those of the addresses that this machine has; the first one chooses a free port."""
    sockets: list[socket.socket] = []
    missing = None
    try:
        for family, host in addresses:
            try:
                sockets.append(_socket(family, (host, port)))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
            else:
                port = port or sockets[0].getsockname()[1]
        if not sockets and missing is not None:
            raise missing
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _socket(
    family: socket.AddressFamily, address: tuple[str, int], *, dualstack_ipv6: bool = False
) -> socket.socket:
    return socket.create_server(
        address, family=family, backlog=_BACKLOG, dualstack_ipv6=dualstack_ipv6
    )


def bind_unix(path: Path) -> Listener:
    """Listen on a Unix socket that anybody may connect to; raises `AddressError`.

    A socket that a server left behind when it exited is replaced.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists():
            _remove_stale(path)
        listener.bind(str(path))
        path.chmod(
            0o666
        )  # a proxy in front runs as another user; the folder's mode keeps others out
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = "the address is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise AddressError(f"cannot listen on unix:{path}: {why or error}") from None
    return Listener(listener)


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


def release(listener: Listener, path: Path | None) -> None:
    """Stop listening, and remove a Unix socket's path from the file system."""
    listener.close()
    if path is not None:
        path.unlink(missing_ok=True)


def url(listener: Listener, *, tls: bool = False) -> str:
    """Return the URL at which a browser finds the server, or `unix:path`."""
    if listener.unix is not None:
        return f"unix:{listener.unix}"
    host, port = listener.names[0]
    if host in ("", "::", "0.0.0.0") or (listener.loopback and len(listener.names) > 1):  # noqa: S104 - shown only
        host = "localhost"
    name = f"[{host}]" if ":" in host else host
    return f"http{'s' if tls else ''}://{name}:{port}"
