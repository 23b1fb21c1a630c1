"""What a node knows of itself, for those who watch it."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["ConnectionInfo", "HostInfo", "NodeInfo", "ProcessInfo"]


class ConnectionInfo(Struct, frozen=True, kw_only=True):
    """One connection: its target, seconds since the upgrade, bytes that wait for the client.

    `client` is the client's address and port (None over a Unix socket, port 0 behind a proxy that
    does not tell it), `user` is the relay's
    metadata's: its `user`, or that one's `name` or `id` if it is an object, else its `name`.
    `dropped` counts the messages that it never got (outbox policy `drop`), `unfinished` the
    bytes of what it has sent that are no message to the target yet.
    """

    pid: str
    target: str
    client: tuple[str, int] | None = None
    path: str = ""
    subprotocol: str | None = None
    user: str | None = None
    uptime: float
    messages: int
    outbox: int
    dropped: int
    unfinished: int = 0


class ProcessInfo(Struct, frozen=True, kw_only=True):
    """One worker; `parent` is who spawned it.

    `mailbox` is the bytes that wait for it at the node: messages of processes and clients, joins
    and leaves, each with what it costs beside its payload. Of its names it has the first hundred.
    """

    pid: str
    os_pid: int | None
    host: str
    target: str
    state: str
    names: list[str]
    parent: str | None
    uptime: float
    mailbox: int
    connections: int


class HostInfo(Struct, frozen=True, kw_only=True):
    """One process host; `os_pid` is its template's."""

    name: str
    os_pid: int | None
    processes: int
    max_processes: int


class NodeInfo(Struct, frozen=True, kw_only=True):
    """A node and all that lives in it.

    `application` is what it serves, `addresses` the URLs where, `uptime` in seconds: its control
    socket knows them. `buffered` is the bytes that clients have begun and not finished.
    """

    name: str
    os_pid: int
    version: str
    draining: bool
    dead_letters: int
    hosts: list[HostInfo]
    processes: list[ProcessInfo]
    connections: list[ConnectionInfo]
    buffered: int = 0
    max_buffered: int = 0
    application: str = ""
    addresses: list[str] = []
    uptime: float = 0.0
