"""`wsrelay top`: the processes of a running node, updated in place, the busiest first."""

from __future__ import annotations

import contextlib
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import click
import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from wsrelay.node import NodeInfo, ProcessInfo
from wsrelay.values import durations
from wsrelay.values.printable import printable

from .cells import buffered
from .cluster import all_nodes, together
from .nodes import chosen, node_option
from .options import parsed
from .rates import MessageRates
from .tables import console, processes_table
from .usage import UsageSampler, duration, with_usage

__all__ = ["top"]

_AROUND: Final = 5
"""Lines of the screen that are not processes: two of the node, two empty ones, the headings."""

_STEP: Final = 1024 * 1024
"""Bytes of memory below which two processes count as equal, so that rows do not swap places."""


@click.command()
@click.option(
    "--interval",
    default="1s",
    show_default=True,
    callback=parsed(partial(durations.parse, least=0.1)),
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="For scripts: print one line, a JSON object like that of `tree --json` with the time and "
    "the CPU and memory usage of the processes and their messages a second.",
)
@click.option("-f", "--follow", is_flag=True, help="With --json: print a line every interval.")
@click.option("--cluster", is_flag=True, help="Watch those of all nodes of the cluster.")
@node_option
def top(*, interval: float, as_json: bool, follow: bool, cluster: bool, node: str | None) -> None:
    """Watch the processes of a running node, the busiest first; q or Ctrl-C quits."""
    if follow and not as_json:
        raise click.UsageError("--follow needs --json")
    usage, rates = UsageSampler(), MessageRates()
    with chosen(node) as client, contextlib.suppress(KeyboardInterrupt):

        def look() -> NodeInfo:
            info = client.node()
            if not client.at:  # the OS PIDs are those of this machine
                usage.sample(info)
            if not cluster:
                return info
            with all_nodes(client) as infos:
                return together(infos)

        if as_json:
            click.echo(_line(look(), usage, rates))
            while follow:
                time.sleep(interval)
                click.echo(_line(look(), usage, rates))
            return
        if not sys.stdout.isatty():
            page = console()
            page.print(_screen(look(), usage, rates, page))
            return
        screen = Console(markup=False, highlight=False)
        with Live(console=screen, screen=True, auto_refresh=False) as live, _keys():
            while True:
                live.update(_screen(look(), usage, rates, screen), refresh=True)
                if _quits(interval):
                    return


def _line(info: NodeInfo, usage: UsageSampler, rates: MessageRates) -> bytes:
    """Return one line of JSON; `time` is in seconds since 1970."""
    rates.note(info)
    processes = [
        {**with_usage(process, usage), "messages_per_second": rates.of(process)}
        for process in _busiest(info, usage)
    ]
    plain = {**msgspec.to_builtins(info), "processes": processes}
    return msgspec.json.encode({"time": round(time.time(), 3), **plain})


def _busiest(info: NodeInfo, usage: UsageSampler) -> list[ProcessInfo]:
    """Sort by CPU, then by the size of the mailbox, then by memory, then by age."""

    def busy(process: ProcessInfo) -> tuple[float, ...]:
        used = usage.of(process)
        return round(used.cpu or 0), process.mailbox, (used.memory or 0) // _STEP, process.uptime

    return sorted(info.processes, key=busy, reverse=True)


def _screen(info: NodeInfo, usage: UsageSampler, rates: MessageRates, page: Console) -> Any:
    rates.note(info)
    hosts = ", ".join(f"{h.name} {h.processes}/{h.max_processes}" for h in info.hosts)
    state = " draining" if info.draining else ""
    serves = [printable(part) for part in (info.application, *info.addresses) if part]
    up = f"up {duration(info.uptime)}"
    connections = _counted(len(info.connections), "connection")
    lines = [
        " ".join([f"node {info.name} ({info.os_pid}){state}, {up}", *serves]),
        f"{connections}, {_counted(info.dead_letters, 'dead letter')}; {hosts}",
        *([buffered(info)] if info.buffered else []),
    ]
    rows = _busiest(info, usage)
    room = max(page.height - _AROUND - bool(info.buffered), 1) if page.is_terminal else len(rows)
    head = [Text(line, no_wrap=True, overflow="ellipsis") for line in lines]
    more = [Text(f"and {len(rows) - room} more: wsrelay ps")] if len(rows) > room else []
    return Group(*head, Text(), processes_table(rows[:room], usage, page, "ellipsis", rates), *more)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Get keys as they are pressed."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _quits(seconds: float) -> bool:
    """Wait, and return whether q was pressed in the meantime."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and sys.stdin.read(1).lower() == "q"
