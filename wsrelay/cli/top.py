"""`wsrelay top`: the processes of a running node, in place, the busiest first."""

from __future__ import annotations

import contextlib
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from wsrelay import durations
from wsrelay.node import NodeInfo

from .control import chosen, node_option, processes_table
from .usage import Usage, console

__all__ = ["top"]


def _interval(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        return durations.parse(text, least=0.1)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option("--interval", default="1s", show_default=True, callback=_interval)
@node_option
def top(*, interval: float, node: str | None) -> None:
    """Watch the processes of a running node; q or Ctrl-C ends it."""
    usage = Usage()
    with chosen(node) as client, contextlib.suppress(KeyboardInterrupt):
        if not sys.stdout.isatty():
            console().print(_screen(client.node(), usage))
            return
        with Live(console=Console(markup=False), screen=True, auto_refresh=False) as live, _keys():
            while True:
                live.update(_screen(client.node(), usage), refresh=True)
                if _quits(interval):
                    return


def _screen(info: NodeInfo, usage: Usage) -> Any:
    usage.sample(info)
    hosts = ", ".join(f"{h.name} {h.processes}/{h.max_processes}" for h in info.hosts)
    head = (
        f"node {info.name} ({info.os_pid}){' draining' if info.draining else ''}: {hosts}; "
        f"{len(info.connections)} connections, {info.dead_letters} dead letters"
    )
    return Group(Text(head), Text(), processes_table(info, usage, by_cpu=True))


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
    """Wait, and return whether q was pressed meanwhile."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and sys.stdin.read(1).lower() == "q"
