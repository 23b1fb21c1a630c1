"""What a node knows of itself, for those who watch it."""

from __future__ import annotations

import heapq
import os
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    from .node import Node

__all__ = ["ConnectionInfo", "HostInfo", "NodeInfo", "ProcessInfo", "describe"]


_MOST_NAMES: Final = 100
"""Names of a process that are shown: it may have 10,000, and each process of its host."""


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


def describe(node: Node) -> NodeInfo:
    """Return the state of a running node; belongs to its event loop's thread."""
    now = time.monotonic()
    processes = []
    for pid in node.workers:
        worker, row = node.worker(pid), node.kernel.processes.get(pid)
        if worker is None or row is None:
            continue
        processes.append(
            ProcessInfo(
                pid=str(pid),
                os_pid=worker.os_pid,
                host=pid.host,
                target=worker.target,
                state=row.state.value,
                names=heapq.nsmallest(_MOST_NAMES, node.kernel.names.of(pid)),
                parent=None if worker.parent is None else str(worker.parent),
                uptime=round(now - worker.started, 3),
                mailbox=worker.pipe.backlog,
                connections=len(worker.clients),
            )
        )
    return NodeInfo(
        name=node.name,
        os_pid=os.getpid(),
        version=version("wsrelay"),
        draining=node.draining,
        dead_letters=node.dead_letters,
        hosts=[
            HostInfo(
                name=name,
                os_pid=os_pid,
                processes=node.kernel.count(name),
                max_processes=node.hosts[name].max_processes,
            )
            for name, os_pid in node.templates.items()
        ],
        processes=processes,
        connections=[one.describe() for one in node.clients.connections.values()],
        buffered=node.buffered.size,
        max_buffered=node.buffered.most,
    )
