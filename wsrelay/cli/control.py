"""A running node, seen and told: `ps`, `tree`, `connections`, `send`, `cancel`, `kill`, `logs`."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from wsrelay.control import ControlClient, ControlError, NodeGone, find_nodes
from wsrelay.control.runtime import runtime_directory
from wsrelay.errors import InvalidPID
from wsrelay.node import NodeInfo, ProcessInfo
from wsrelay.pid import PID
from wsrelay.printable import printable

from .running import fail
from .usage import Usage, console, duration, size

__all__ = ["chosen", "node_option", "processes_table"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def node_option(command: _Command) -> _Command:
    """Add `--node` to a command."""
    return click.option("--node", help="Which node, by its name or OS process id.")(command)


_json_option = click.option("--json", "as_json", is_flag=True, help="JSON, for scripts.")


@contextlib.contextmanager
def chosen(node: str | None) -> Iterator[ControlClient]:
    """Give the running node that is meant; ends the command where there is none, or several."""
    directory = runtime_directory()
    try:
        clients = find_nodes(directory)
        shown = {client: client.path.stem for client in clients}
        if node is not None:
            clients = [c for c in clients if node in (shown[c], *shown[c].rsplit("-", 1))]
        if not clients:
            which = f"node {node!r}" if node else "node"
            fail(
                f"no {which} of this user is running (looked in {directory}); "
                "start one with 'wsrelay run TARGET' or 'wsrelay serve'"
            )
        if len(clients) > 1:
            names = ", ".join(shown[client].rsplit("-", 1)[1] for client in clients)
            fail(f"{len(clients)} nodes are running: choose one with --node ({names})")
        yield clients[0]
    except (ControlError, NodeGone, ValueError) as error:
        fail(str(error))


def _meant(client: ControlClient, text: str) -> str:
    """Return the PID or name that is meant: a PID may come without braces, or as its id alone."""
    info = client.node()
    known = [p.pid for p in info.processes] + [c.pid for c in info.connections]
    ends = [pid for pid in known if pid.endswith(f"|{text}}}")]
    if len(ends) == 1:
        return ends[0]
    if "|" in text and not text.startswith("{"):
        text = f"{{{text}}}"
    if text.startswith("{"):
        try:
            PID(text)
        except InvalidPID as error:
            fail(str(error))
    return text


def _complete(_c: click.Context, _p: click.Parameter, incomplete: str) -> list[CompletionItem]:
    items = []
    try:
        nodes = find_nodes(runtime_directory())
    except ControlError:
        return []  # the command itself says why
    for client in nodes:
        with contextlib.suppress(NodeGone, ValueError):
            for process in client.node().processes:
                short = process.pid.rpartition("|")[2].rstrip("}")
                items += [CompletionItem(short, help=process.target)]
                items += [CompletionItem(name) for name in process.names]
    return [item for item in items if item.value.startswith(incomplete)]


@click.command()
@node_option
@_json_option
def ps(*, node: str | None, as_json: bool) -> None:
    """List the processes of a running node."""
    with chosen(node) as client:
        info = client.node()
        usage = Usage()
        usage.sample(info)
        if as_json:
            click.echo(json.dumps([_with_usage(p, usage) for p in info.processes], indent=2))
        else:
            console().print(processes_table(info, usage))


def _with_usage(process: ProcessInfo, usage: Usage) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(process)
    used = usage.of(process)
    return {**plain, "cpu_percent": used.cpu, "memory": used.memory}


_RIGHT: Final = {
    "OS PID",
    "UPTIME",
    "CPU",
    "MEMORY",
    "MAILBOX",
    "CLIENTS",
    "MESSAGES",
    "OUTBOX",
    "DROPPED",
}


def _names(process: ProcessInfo) -> str:
    return ", ".join(printable(name) for name in process.names)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in _RIGHT else "left", no_wrap=True)
    return table


def processes_table(info: NodeInfo, usage: Usage, *, by_cpu: bool = False) -> Table:
    """Return the table of `ps` and `top`."""
    table = _table(
        "PID", "OS PID", "STATE", "UPTIME", "CPU", "MEMORY", "MAILBOX", "CLIENTS", "NAMES", "TARGET"
    )
    rows = info.processes
    if by_cpu:
        rows = sorted(rows, key=lambda p: -(usage.of(p).cpu or 0))
    for process in rows:
        used = usage.of(process)
        table.add_row(
            process.pid,
            str(process.os_pid or "-"),
            process.state,
            duration(process.uptime),
            "-" if used.cpu is None else f"{used.cpu:.0f}%",
            "-" if used.memory is None else size(used.memory),
            size(process.mailbox),
            str(process.connections),
            _names(process),
            process.target,
        )
    return table


@click.command()
@node_option
@_json_option
def tree(*, node: str | None, as_json: bool) -> None:
    """Show hosts, who spawned whom, and whose clients are whose."""
    with chosen(node) as client:
        info = client.node()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(info), indent=2).decode())
        return
    root = Tree(Text(f"node {info.name} (OS pid {info.os_pid}, wsrelay {info.version})"))
    known = {process.pid for process in info.processes}

    def add(branch: Tree, process: ProcessInfo) -> None:
        names = (" ", (_names(process), "bold")) if process.names else ()
        line = Text.assemble(process.pid, *names, f" {process.target} ({process.state})")
        twig = branch.add(line)
        for child in info.processes:
            if child.parent == process.pid:
                add(twig, child)
        for connection in info.connections:
            if connection.target == process.pid:
                twig.add(Text(f"{connection.pid} client, {connection.messages} messages"))

    for host in info.hosts:
        template = f"template's OS pid {host.os_pid}" if host.os_pid else "not started"
        count = f"{host.processes} of {host.max_processes}"
        branch = root.add(Text(f"{host.name}: {count} ({template})"))
        for process in info.processes:
            if process.host == host.name and process.parent not in known:
                add(branch, process)
    console().print(root)


@click.command()
@node_option
@_json_option
def connections(*, node: str | None, as_json: bool) -> None:
    """List the WebSocket connections of a running node."""
    with chosen(node) as client:
        info = client.node()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(info.connections), indent=2).decode())
        return
    table = _table("PID", "TARGET", "UPTIME", "MESSAGES", "OUTBOX", "DROPPED")
    for one in info.connections:
        counts = duration(one.uptime), str(one.messages), size(one.outbox), str(one.dropped)
        table.add_row(one.pid, one.target, *counts)
    console().print(table)


@click.command()
@click.argument("to", shell_complete=_complete)
@click.argument("topic")
@click.argument("payload", default="null", metavar="[JSON]")
@node_option
def send(*, to: str, topic: str, payload: str, node: str | None) -> None:
    """Send a message to a process: PID or name, topic, JSON payload."""
    try:
        content = json.loads(payload)
    except ValueError as error:
        fail(f"{payload!r} is no JSON ({error}); text needs quotes of its own: '\"hello\"'")
    with chosen(node) as client:
        client.send(_meant(client, to), topic, content)


@click.command()
@click.argument("to", shell_complete=_complete)
@click.option("--reason", default="", help="What its CANCEL event, or its client, is told.")
@node_option
def cancel(*, to: str, reason: str, node: str | None) -> None:
    """Ask a process or a connection to end."""
    with chosen(node) as client:
        client.cancel(_meant(client, to), reason)


@click.command()
@click.argument("to", shell_complete=_complete)
@node_option
def kill(*, to: str, node: str | None) -> None:
    """End a process and its children, or a connection, at once."""
    with chosen(node) as client:
        client.kill(_meant(client, to))


@click.command()
@click.argument("pid", required=False, shell_complete=_complete)
@click.option("-f", "--follow", is_flag=True, help="Wait for more.")
@node_option
@_json_option
def logs(*, pid: str | None, follow: bool, node: str | None, as_json: bool) -> None:
    """Print the last log records of a running node, or of one process."""
    with chosen(node) as client, contextlib.suppress(KeyboardInterrupt):
        for record in client.logs(pid and _meant(client, pid), follow=follow):
            if as_json:
                click.echo(msgspec.json.encode(record))
            else:
                time = dt.datetime.fromtimestamp(record.time).astimezone()
                click.echo(f"{time:%Y-%m-%d %H:%M:%S} {record.level.upper():7} {record.text}")
            sys.stdout.flush()
