"""The tables of a node's processes and connections, fitted to the terminal's width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len
from rich.console import Console, JustifyMethod, OverflowMethod
from rich.table import Table
from rich.text import Text

from wsrelay.node import ConnectionInfo, ProcessInfo

from .cells import (
    CONNECTIONS,
    PROCESSES,
    RATE,
    RIGHT,
    connection_cells,
    counts,
    figures,
    names,
    process_cells,
    who,
)
from .rates import MessageRates
from .usage import UsageSampler

__all__ = ["connections_table", "console", "processes_table"]

WIDEST: Final = 10_000
"""Width in characters where there is no terminal: names may have hundreds."""

_LAST: Final = 14
"""Characters that the last column of a narrow table has at least: who it is."""

_DISPENSABLE: Final = (
    *("DROPPED", "UPTIME", "OS PID", "MAILBOX", "MESSAGES", "CLIENTS", "TOOK", "TARGET"),
    *(RATE, "OUTBOX", "MEMORY"),
)
"""What is left out for that in very narrow terminals, the first ones first."""


def console() -> Console:
    """Return the console for tables; in a pipe or a file they have their full width, uncut.

    Names and targets are users' text, which must not be taken for markup.
    """
    shown = Console(markup=False, highlight=False)
    return shown if shown.is_terminal else Console(width=WIDEST, markup=False, highlight=False)


def processes_table(
    processes: Sequence[ProcessInfo],
    usage: UsageSampler,
    console: Console,
    overflow: OverflowMethod,
    rates: MessageRates | None = None,
) -> Table:
    """Return the table of `ps`, or that of `top`, which has rates.

    If the terminal is too narrow for all of it, a PID is shown as its id alone (the part that is
    never reused and that all commands accept), a state only if it is not `running`, and if need be
    fewer figures.
    """
    table = _table(*_with_rate(PROCESSES, rates))
    for one in processes:
        table.add_row(*_with_rate(process_cells(one, usage), rates, one))
    if _fits(table, console):
        return table
    headings = _with_rate(
        ("PID", "OS PID", "UPTIME", "CPU", "MEMORY", "MAILBOX", "TOOK", "CLIENTS"), rates, at=5
    )
    rows = []
    for one in processes:
        state = "" if one.state == "running" else f"({one.state}) "
        shown = _with_rate((_id(one.pid), *figures(one, usage)), rates, one, at=5)
        rows.append([*shown, f"{state}{names(one) or one.target}"])
    return _narrow([*headings, "NAME OR TARGET"], rows, console, overflow)


def _with_rate(
    cells: Sequence[str], rates: MessageRates | None, of: ProcessInfo | None = None, at: int = 7
) -> Sequence[str]:
    """Return a row with the rate before the mailbox, whose cell is at `at`, or the headings."""
    if rates is None:
        return cells
    rate = None if of is None else rates.of(of)
    shown = RATE if of is None else "-" if rate is None else f"{rate:,.0f}"
    return *cells[:at], shown, *cells[at:]


def connections_table(connections: Sequence[ConnectionInfo], console: Console) -> Table:
    """Return the table of `connections`; in a narrow terminal PIDs are shown as their ids."""
    table = _table(*CONNECTIONS)
    for one in connections:
        table.add_row(*connection_cells(one))
    if _fits(table, console):
        return table
    headings = ["PID", "TARGET", "UPTIME", "MESSAGES", "OUTBOX", "DROPPED", "CLIENT"]
    rows = [[*_ids(one), *counts(one), who(one)] for one in connections]
    return _narrow(headings, rows, console, "fold")


def _narrow(
    headings: list[str], rows: list[list[str]], console: Console, overflow: OverflowMethod
) -> Table:
    """Return a table whose last column is fitted, without what its width has no room for."""
    columns = list(zip(headings, *rows, strict=True))
    widths = {column[0]: max(map(cell_len, column)) + 1 for column in columns[:-1]}
    for heading in _DISPENSABLE:
        if sum(widths.values()) + _LAST <= console.width:
            break
        widths.pop(heading, None)
    kept = [column for column in columns if column[0] in widths] + columns[-1:]
    table = _table(*(column[0] for column in kept), overflow=overflow)
    for row in zip(*(column[1:] for column in kept), strict=True):
        table.add_row(*row)
    return table


def _table(*headings: str, overflow: OverflowMethod | None = None) -> Table:
    """Return an empty table; with `overflow`, a narrow one whose last column is fitted."""
    padding = (0, 1) if overflow is None else (0, 1, 0, 0)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=padding)
    for heading in headings:
        justify: JustifyMethod = "right" if heading in RIGHT else "left"
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


def _ids(one: ConnectionInfo) -> tuple[str, str]:
    """Return the ids of a connection and its target, with what says which if it is elsewhere."""
    if one.pid.partition("@")[0] == one.target.partition("@")[0]:
        return _id(one.pid), _id(one.target)
    return one.pid[1:-1], one.target[1:-1]


def _id(pid: str) -> str:
    return pid.rpartition("|")[2].removesuffix("}")
