"""The tables of a node's processes and connections, as wide as their reader's terminal allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console, JustifyMethod, OverflowMethod
from rich.table import Table
from rich.text import Text

from wsrelay.node import ConnectionInfo, NodeInfo, ProcessInfo
from wsrelay.values.printable import printable

from .usage import WIDEST, Usage, duration, size

__all__ = ["buffered", "connections_table", "names", "processes_table", "who"]

_RIGHT: Final = {
    *("OS PID", "UPTIME", "CPU", "MEMORY", "MAILBOX"),
    *("CLIENTS", "MESSAGES", "OUTBOX", "DROPPED"),
}


def names(process: ProcessInfo) -> str:
    """Return a process's names, separated by commas."""
    return ", ".join(printable(name) for name in process.names)


def who(connection: ConnectionInfo) -> str:
    """Return who is at the other end: address, path, and user and subprotocol if there are any."""
    found = [_address(connection), printable(connection.path)]
    found += [f"user {printable(connection.user)}"] if connection.user is not None else []
    found += [f"subprotocol {connection.subprotocol}"] if connection.subprotocol else []
    return " ".join(found)


def _address(connection: ConnectionInfo) -> str:
    if connection.client is None:
        return "-"
    host, port = connection.client
    shown = f"[{host}]" if ":" in host else host
    return printable(f"{shown}:{port}" if port else host)


def buffered(info: NodeInfo) -> str:
    """Return how much clients have begun and not finished."""
    return f"clients have begun {size(info.buffered)} of at most {size(info.max_buffered)}"


def processes_table(
    processes: Sequence[ProcessInfo], usage: Usage, console: Console, overflow: OverflowMethod
) -> Table:
    """Return the table of `ps` and `top`.

    Where the terminal is too narrow for all of it the PID is its id alone, the part that is never
    used twice and that all commands take, and a state is shown only where it is not `running`.
    """
    table = _table(
        *("PID", "OS PID", "HOST", "STATE", "UPTIME", "CPU", "MEMORY", "MAILBOX", "CLIENTS"),
        *("NAMES", "TARGET"),
    )
    for one in processes:
        os_pid, *rest = _figures(one, usage)
        table.add_row(one.pid, os_pid, one.host, one.state, *rest, names(one), one.target)
    if _fits(table, console):
        return table
    table = _table(
        *("PID", "OS PID", "UPTIME", "CPU", "MEMORY", "MAILBOX", "CLIENTS", "NAME OR TARGET"),
        overflow=overflow,
    )
    for one in processes:
        state = "" if one.state == "running" else f"({one.state}) "
        table.add_row(_id(one.pid), *_figures(one, usage), f"{state}{names(one) or one.target}")
    return table


def _figures(process: ProcessInfo, usage: Usage) -> tuple[str, ...]:
    used = usage.of(process)
    return (
        str(process.os_pid or "-"),
        duration(process.uptime),
        "-" if used.cpu is None else f"{used.cpu:.0f}%",
        "-" if used.memory is None else size(used.memory),
        size(process.mailbox),
        str(process.connections),
    )


def connections_table(connections: Sequence[ConnectionInfo], console: Console) -> Table:
    """Return the table of `connections`; in a narrow terminal PIDs are their ids alone."""
    counts = "UPTIME", "MESSAGES", "OUTBOX", "DROPPED"
    table = _table("PID", "TARGET", "CLIENT", "USER", "SUBPROTOCOL", *counts, "PATH")
    for one in connections:
        user, path = printable(one.user or "-"), printable(one.path)
        end = _address(one), user, one.subprotocol or "-"
        table.add_row(one.pid, one.target, *end, *_counts(one), path)
    if _fits(table, console):
        return table
    table = _table("PID", "TARGET", *counts, "CLIENT", overflow="fold")
    for one in connections:
        table.add_row(_id(one.pid), _id(one.target), *_counts(one), who(one))
    return table


def _counts(connection: ConnectionInfo) -> tuple[str, ...]:
    return (
        duration(connection.uptime),
        str(connection.messages),
        size(connection.outbox),
        str(connection.dropped),
    )


def _table(*headings: str, overflow: OverflowMethod | None = None) -> Table:
    """Return an empty table; with `overflow` a narrow one, whose last column gives way."""
    padding = (0, 1) if overflow is None else (0, 1, 0, 0)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=padding)
    for heading in headings:
        justify: JustifyMethod = "right" if heading in _RIGHT else "left"
        if overflow is not None and heading == headings[-1]:
            table.add_column(heading, overflow=overflow, no_wrap=overflow == "ellipsis", ratio=1)
        else:
            table.add_column(Text(heading), justify=justify, no_wrap=True)
    return table


def _fits(table: Table, console: Console) -> bool:
    if not console.is_terminal:
        return True
    unbounded = console.options.update_width(WIDEST)
    return console.measure(table, options=unbounded).maximum <= console.width


def _id(pid: str) -> str:
    return pid.rpartition("|")[2].removesuffix("}")
