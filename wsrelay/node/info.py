"""What a node knows about itself, for monitoring."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["ConnectionInfo", "HostInfo", "LinkInfo", "MemberInfo", "NodeInfo", "ProcessInfo"]


class ConnectionInfo(Struct, frozen=True, kw_only=True):
    """One connection, or a client of another node whose target is here, as far as is known here.

    `uptime` is in seconds since the upgrade. `client` is the client's address and port (None over a
    Unix socket; the port is 0 behind a proxy that does not report it). `user` comes from the
    relay's metadata: its `user` (the `name` or `id` of that if it is an object), else its `name`.
    `messages` counts what the client has sent. `outbox` is the bytes that wait for the client,
    `dropped` counts the messages that it never got (outbox policy `drop`), and `unfinished` is the
    bytes that it has sent of messages that are not complete yet.
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
    """One worker; `parent` is the process that spawned it, `uptime` in seconds.

    `mailbox` is the bytes that wait for it at the node: messages from processes and clients, joins
    and leaves, each with its overhead. `waiting` is how many messages it has not taken, wherever
    they wait: at the node, in its pipe or in its channels. `idle` is the seconds since it took the
    last, None if it has taken none. `stalled`: it has had messages waiting and has taken none for
    as long as the `stall` of its host. `names` has at most the first hundred names.
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
    waiting: int = 0
    idle: float | None = None
    stalled: bool = False


class HostInfo(Struct, frozen=True, kw_only=True):
    """One process host; `os_pid` is its template's."""

    name: str
    os_pid: int | None
    processes: int
    max_processes: int


class NodeInfo(Struct, frozen=True, kw_only=True):
    """A node and everything in it.

    `application` is what it serves, `addresses` are the URLs that it serves at, `uptime` is in
    seconds; the control socket fills these in. `buffered` is the bytes of messages that clients
    have begun and not finished.
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


class LinkInfo(Struct, frozen=True, kw_only=True):
    """The link to another node: what has not arrived there, in bytes, and for how long.

    `backlog` waits here for room, `unacknowledged` is under way. `delay` is the seconds for which
    nothing of that has been acknowledged.
    """

    connected: bool
    backlog: int
    unacknowledged: int
    delay: float
    sent: int
    resent: int
    received: int


class MemberInfo(Struct, frozen=True, kw_only=True):
    """A node of the cluster, as the node that was asked knows it.

    `state` is `up`, `joining`, `frozen` (its lease was not renewed in time), `draining`, `silent`
    (waited for: its lease is not renewed, and when that has run out it is declared dead),
    `unknown` (noticed, and its lease not read yet), `misfit` (with another lease or protocol: no
    member), `dead` or `gone` (it has left). `incarnation` is empty for one that is not alive.
    `unrenewed` is the seconds for which its lease was not renewed, as far as was seen; None while
    the node that was asked sees nothing of it, as without NATS.

    `hosts` has how many processes each host runs and may run; `clients` is the connections. They,
    `version` and `protocol` are what the node says of itself: None if it has not said so lately.
    `link` is that to the node; None for the one that was asked, and without one.
    """

    name: str
    incarnation: str
    state: str
    asked: bool = False
    version: str | None = None
    protocol: int | None = None
    hosts: dict[str, tuple[int, int]] | None = None
    clients: int | None = None
    unrenewed: float | None = None
    link: LinkInfo | None = None
