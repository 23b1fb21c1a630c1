"""The state of a running node, for monitoring."""

from __future__ import annotations

import heapq
import os
import time
from importlib.metadata import version
from typing import Final

from .info import HostInfo, NodeInfo, ProcessInfo
from .node import Node

__all__ = ["describe"]

_MOST_NAMES: Final = 100
"""Names that are shown of a process: each process of a host may have 10,000."""


def describe(node: Node) -> NodeInfo:
    """Return the state of a running node; must be called in its event loop's thread."""
    now = time.monotonic()
    clients = (*node.clients.connections.values(), *node.clients.guests.values())
    processes = []
    for pid, process in node.engine.processes.items():
        processes.append(
            ProcessInfo(
                pid=str(pid),
                os_pid=process.os_pid,
                host=pid.host,
                target=process.target,
                state="frozen" if process.frozen else process.row.state.value,
                names=heapq.nsmallest(_MOST_NAMES, node.kernel.names.of(pid)),
                parent=None if process.parent is None else str(process.parent),
                uptime=round(now - process.started, 3),
                mailbox=process.pipe.backlog,
                connections=len(process.clients),
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
        connections=[one.describe() for one in clients],
        buffered=node.buffered.size,
        max_buffered=node.buffered.most,
    )
