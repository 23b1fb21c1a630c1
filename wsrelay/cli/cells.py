"""The contents of the tables of processes and connections, and plain tables without rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from wsrelay.node import ConnectionInfo, NodeInfo, ProcessInfo
from wsrelay.values.printable import printable

from .usage import UsageSampler, duration, size

__all__ = [
    "CONNECTIONS",
    "PROCESSES",
    "RATE",
    "RIGHT",
    "address",
    "buffered",
    "connection_cells",
    "counts",
    "figures",
    "names",
    "plain",
    "process_cells",
    "who",
]

PROCESSES: Final = (
    *("PID", "OS PID", "HOST", "STATE", "UPTIME", "CPU", "MEMORY", "MAILBOX", "TOOK", "CLIENTS"),
    *("WAITING", "NAMES", "TARGET"),
)
CONNECTIONS: Final = (
    *("PID", "TARGET", "CLIENT", "USER", "SUBPROTOCOL"),
    *("UPTIME", "MESSAGES", "OUTBOX", "DROPPED", "PATH"),
)
RATE: Final = "MSG/S"
"""The column of messages a second, received and sent."""
RIGHT: Final = {
    *("OS PID", "UPTIME", "CPU", "MEMORY", RATE, "MAILBOX", "TOOK", "WAITING"),
    *("CLIENTS", "MESSAGES", "OUTBOX", "DROPPED"),
}
"""Columns of figures, which are aligned to the right."""


def names(process: ProcessInfo) -> str:
    """Return a process's names, separated by commas."""
    return ", ".join(printable(name) for name in process.names)


def who(connection: ConnectionInfo) -> str:
    """Return a client's address and path, and its user and subprotocol if it has them."""
    found = [address(connection), printable(connection.path)]
    found += [f"user {printable(connection.user)}"] if connection.user is not None else []
    found += [f"subprotocol {connection.subprotocol}"] if connection.subprotocol else []
    return " ".join(found)


def address(connection: ConnectionInfo) -> str:
    """Return a client's address."""
    if connection.client is None:
        return "-"
    host, port = connection.client
    shown = f"[{host}]" if ":" in host else host
    return printable(f"{shown}:{port}" if port else host)


def buffered(info: NodeInfo) -> str:
    """Return a line that says how much clients have begun and not finished."""
    return f"clients have begun {size(info.buffered)} of at most {size(info.max_buffered)}"


def process_cells(process: ProcessInfo, usage: UsageSampler) -> tuple[str, ...]:
    """Return a row of `PROCESSES`."""
    os_pid, *rest = figures(process, usage)
    place = process.pid, os_pid, process.host, process.state
    return *place, *rest, str(process.waiting), names(process), process.target


def figures(process: ProcessInfo, usage: UsageSampler) -> tuple[str, ...]:
    """Return a process's figures, beginning with its OS PID."""
    used = usage.of(process)
    return (
        str(process.os_pid or "-"),
        duration(process.uptime),
        "-" if used.cpu is None else f"{used.cpu:.0f}%",
        "-" if used.memory is None else size(used.memory),
        size(process.mailbox),
        _took(process),
        str(process.connections),
    )


def _took(process: ProcessInfo) -> str:
    """Return how long ago a process took its last message."""
    return "-" if process.idle is None else duration(process.idle)


def connection_cells(connection: ConnectionInfo) -> tuple[str, ...]:
    """Return a row of `CONNECTIONS`."""
    user, path = printable(connection.user or "-"), printable(connection.path)
    end = address(connection), user, connection.subprotocol or "-"
    return connection.pid, connection.target, *end, *counts(connection), path


def counts(connection: ConnectionInfo) -> tuple[str, ...]:
    """Return a connection's figures."""
    return (
        duration(connection.uptime),
        str(connection.messages),
        size(connection.outbox),
        str(connection.dropped),
    )


def plain(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text, as wide as its contents need."""
    lines = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if heading in RIGHT else cell.ljust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        ).rstrip()
        for line in lines
    )
