"""The state of a running node, for monitoring."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Iterable
from importlib.metadata import version
from typing import Final

import msgspec

from wsrelay.values.pid import PID, address
from wsrelay.wire.tally import TOOK, Tally

from .connections import TargetClient
from .info import ConnectionInfo, HostInfo, NodeInfo, ProcessInfo
from .node import Node

__all__ = [
    "connections_after",
    "describe",
    "full",
    "host_info",
    "locate",
    "process_info",
    "processes_after",
]

_MOST_NAMES: Final = 100
"""Names that are shown of a process: each process of a host may have 10,000."""

_MOST_AT_ONCE: Final = 1_000
"""Processes that are told at once: some 10 ms."""

_PORTION: Final = 128 * 1024
"""Bytes of their description after which no more are added."""


def describe(node: Node, *, brief: bool = False) -> NodeInfo:
    """Return the state of a running node; must be called in its event loop's thread.

    If it shall be `brief`, its processes and connections are left out.
    """
    now = time.monotonic()
    clients = () if brief else _clients(node).values()
    processes = [] if brief else [process_info(node, pid, now) for pid in node.engine.processes]
    return NodeInfo(
        name=node.name,
        os_pid=os.getpid(),
        version=version("wsrelay"),
        draining=node.draining,
        dead_letters=node.dead_letters,
        hosts=[host_info(node, name) for name in node.templates],
        processes=processes,
        connections=[one.describe() for one in clients],
        buffered=node.buffered.size,
        max_buffered=node.buffered.most,
    )


def host_info(node: Node, name: str) -> HostInfo:
    """Return the state of a host, which may have been removed."""
    return HostInfo(
        name=name,
        os_pid=node.templates.get(name),
        processes=node.kernel.count(name),
        max_processes=node.hosts[name].max_processes,
    )


def process_info(node: Node, pid: PID, now: float) -> ProcessInfo:
    """Return the state of a process; `now` is of the clock of `time.monotonic`."""
    process = node.engine.processes[pid]
    stalled = node.engine.stalls.is_stalled(process)
    state = "stalled" if stalled else process.row.state.value
    return ProcessInfo(
        pid=str(pid),
        os_pid=process.os_pid,
        host=pid.host,
        target=process.target,
        state="frozen" if process.frozen else state,
        names=heapq.nsmallest(_MOST_NAMES, node.kernel.names.of(pid)),
        parent=None if process.parent is None else str(process.parent),
        uptime=round(now - process.started, 3),
        mailbox=process.pipe.backlog,
        received=process.received,
        sent=process.sent,
        connections=len(process.clients),
        waiting=process.waiting,
        idle=_idle(process.tally),
        stalled=stalled,
    )


def _idle(tally: Tally | None) -> float | None:
    """Return the seconds since a process took its last message; it may have noted anything."""
    if tally is None or tally[TOOK] <= 0:
        return None
    return round(max(0, time.monotonic_ns() - tally[TOOK]) / 1e9, 3)


def processes_after(node: Node, after: str) -> list[bytes]:
    """Return the processes whose PIDs are greater than `after`, in their order, as MessagePack.

    It is a portion of them: after the last one there, more may follow, unless it is empty. So each
    process that lives all the while is told once, whatever starts and ends between two portions.
    """
    now, size = time.monotonic(), 0
    found: list[bytes] = []
    greater = (pid for pid in node.engine.processes if pid > after)
    for pid in heapq.nsmallest(_MOST_AT_ONCE, greater):
        found.append(msgspec.msgpack.encode(process_info(node, pid, now)))
        size += len(found[-1])
        if size > _PORTION:
            break
    return found


def connections_after(node: Node, after: str) -> list[ConnectionInfo]:
    """Return a portion of the connections, as `processes_after` does of the processes."""
    clients = _clients(node)
    greater = (pid for pid in clients if pid > after)
    return [clients[pid].describe() for pid in heapq.nsmallest(_MOST_AT_ONCE, greater)]


def _clients(node: Node) -> dict[PID, TargetClient]:
    """Return the connections, and the clients of other nodes whose targets are here."""
    return {**node.clients.connections, **node.clients.guests}


def locate(node: Node, text: str) -> PID | None:
    """Return the PID of a living process or connection of this node, or None.

    It is meant by its PID, with or without braces, by the part of that after the `|`, or by a name.
    Raises `InvalidPID`, `InvalidName` for what is neither.
    """
    known = (*node.engine.processes, *node.clients.connections)
    process = node.kernel.find(full(text, known) or address(text), node.name)
    return None if process is None else process.pid


def full(text: str, known: Iterable[str]) -> str | None:
    """Return the known PID that is meant, or None: it is a name, or the PID of none of them."""
    inner = text.removeprefix("{").removesuffix("}")
    for pid in known:
        whole = pid[1:-1]
        if inner in (whole, whole.partition("@")[2], whole.rpartition("|")[2]):
            return pid
    return None
