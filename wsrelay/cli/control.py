"""Commands for a running node: `ps`, `tree`, `connections`, `send`, `call`, `logs` and others."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import click
import msgspec

from wsrelay.control import ControlClient
from wsrelay.control.records import LogRecord
from wsrelay.errors import MissingExtra
from wsrelay.node import ConnectionInfo, NodeInfo, ProcessInfo
from wsrelay.values import durations, extras
from wsrelay.values.printable import escaped, escaped_in_json, indented, printable

from . import cells
from .cluster import all_connections, all_nodes, asking_all, list_all, show_processes
from .following import follow_all
from .nodes import anywhere_option, chosen, node_option
from .nodes import complete as _complete
from .options import json_option, parsed
from .running import fail, say
from .usage import UsageSampler

try:
    with extras.named():
        from . import tables
except MissingExtra:  # tables are plain then, however wide the terminal is
    tables = None  # type: ignore[assignment]

__all__ = ["call", "cancel", "connections", "kill", "logs", "ps", "send", "stack", "tree"]


@click.command()
@click.option("--cluster", is_flag=True, help="List those of all nodes of the cluster.")
@node_option
@json_option
def ps(*, cluster: bool, node: str | None, as_json: bool) -> None:
    """List the processes of a running node, or of all nodes of its cluster."""
    with chosen(node) as client:
        if cluster:
            list_all(client, as_json=as_json)
            return
        info = client.node()
        usage = UsageSampler()
        if not client.at:  # the OS PIDs are those of this machine
            usage.sample(info)
        show_processes(info.processes, usage, as_json=as_json)
        if info.buffered and not as_json:
            click.echo(cells.buffered(info))


_all_nodes = click.option("--cluster", is_flag=True, help="Show those of all nodes of the cluster.")


@click.command()
@_all_nodes
@node_option
@json_option
def tree(*, cluster: bool, node: str | None, as_json: bool) -> None:
    """Show the hosts, their processes by parent, and each process's clients."""
    with chosen(node) as client:
        if not cluster:
            _show_tree(client.node(), as_json=as_json)
            return
        with all_nodes(client) as infos:
            if as_json:
                click.echo(_json(infos))
                return
            for info in infos:
                _show_tree(info, as_json=False)


def _show_tree(info: NodeInfo, *, as_json: bool) -> None:
    if as_json:
        click.echo(_json(info))
        return
    for line in _tree(info):
        click.echo(line)


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


class _Branch(NamedTuple):
    line: str
    twigs: list[_Branch]

    def lines(self, indent: str = "") -> Iterator[str]:
        for twig in self.twigs:
            last = twig is self.twigs[-1]
            yield f"{indent}{'└──' if last else '├──'} {twig.line}"
            yield from twig.lines(indent + ("    " if last else "│   "))


def _messages(count: int) -> str:
    return f"{count} message{'s' * (count != 1)}"


def _tree(info: NodeInfo) -> Iterator[str]:
    known = {process.pid for process in info.processes}

    def branch(process: ProcessInfo) -> _Branch:
        named = cells.names(process)
        called = f" {click.style(named, bold=True)}" if named else ""
        line = f"{process.pid}{called} {printable(process.target)} ({process.state})"
        twigs = [branch(child) for child in info.processes if child.parent == process.pid]
        return _Branch(line, [*twigs, *clients(process.pid)])

    def clients(target: str) -> list[_Branch]:
        return [
            _Branch(f"{one.pid} client {cells.who(one)}, {_messages(one.messages)}", [])
            for one in info.connections
            if one.target == target
        ]

    hosts = []
    for host in info.hosts:
        template = f"template's OS pid {host.os_pid}" if host.os_pid else "not started"
        count = f"{host.processes} of {host.max_processes}"
        twigs = [
            branch(process)
            for process in info.processes
            if process.host == host.name and process.parent not in known
        ]
        hosts.append(_Branch(f"{host.name}: {count} ({template})", twigs))
    here = f"{{{info.name}@"
    away = dict.fromkeys(one.target for one in info.connections if not one.target.startswith(here))
    if away:
        twigs = [_Branch(target, clients(target)) for target in away]
        hosts.append(_Branch("processes of other nodes", twigs))
    yield f"node {info.name} (OS pid {info.os_pid}, wsrelay {info.version})"
    yield from _Branch("", hosts).lines()


@click.command()
@_all_nodes
@node_option
@json_option
def connections(*, cluster: bool, node: str | None, as_json: bool) -> None:
    """List the WebSocket connections of a running node, or of all nodes of its cluster."""
    with chosen(node) as client:
        if not cluster:
            _show_connections(client.node().connections, as_json=as_json)
            return
        with all_nodes(client) as infos:
            _show_connections(all_connections(infos), as_json=as_json)


def _show_connections(found: Sequence[ConnectionInfo], *, as_json: bool) -> None:
    if as_json:
        click.echo(_json(found))
    elif tables:
        page = tables.console()
        page.print(tables.connections_table(found, page))
    else:
        rows = [cells.connection_cells(one) for one in found]
        click.echo(cells.plain(cells.CONNECTIONS, rows))


@click.command()
@click.argument("to", shell_complete=_complete)
@click.argument("topic")
@click.argument("payload", default="null", metavar="[JSON]")
@anywhere_option
@node_option
def send(*, to: str, topic: str, payload: str, node: str | None, anywhere: bool) -> None:
    """Send a message to a process: PID or name, topic, JSON payload."""
    content = _from_json(payload)
    with chosen(node) as client:
        client.send(to, topic, content, anywhere=anywhere)


@click.command()
@click.argument("to", shell_complete=_complete)
@click.argument("topic")
@click.argument("payload", default="null", metavar="[JSON]")
@click.option(
    "--timeout",
    default="5s",
    show_default=True,
    callback=parsed(durations.parse),
    help="How long to wait for the answer.",
)
@anywhere_option
@node_option
def call(
    *, to: str, topic: str, payload: str, timeout: float, node: str | None, anywhere: bool
) -> None:
    """Send a message to a process and print its answer, as JSON."""
    content = _from_json(payload)
    with chosen(node) as client:
        answer = client.call(to, topic, content, timeout, anywhere=anywhere)
    click.echo(escaped_in_json(msgspec.json.encode(answer).decode()))


def _from_json(text: str) -> Any:
    """Return what is written in JSON; ends the command if it is not."""
    try:
        return json.loads(text)
    except ValueError as error:
        fail(f"{text!r} is not JSON ({error}); text needs quotes of its own: '\"hello\"'")


@click.command()
@click.argument("to", shell_complete=_complete)
@click.option("--reason", default="", help="The reason that its CANCEL event, or its client, gets.")
@anywhere_option
@node_option
def cancel(*, to: str, reason: str, node: str | None, anywhere: bool) -> None:
    """Ask a process or a connection to end."""
    with chosen(node) as client:
        client.cancel(to, reason, anywhere=anywhere)


@click.command()
@click.argument("to", shell_complete=_complete)
@anywhere_option
@node_option
def kill(*, to: str, node: str | None, anywhere: bool) -> None:
    """End a process and its children, or a connection, at once."""
    with chosen(node) as client:
        client.kill(to, anywhere=anywhere)


@click.command()
@click.argument("of", metavar="PID|NAME", shell_complete=_complete)
@anywhere_option
@node_option
def stack(*, of: str, node: str | None, anywhere: bool) -> None:
    """Print where a process is: the Python stacks of its threads, and of its asyncio tasks.

    It works from outside, also while the process is in an endless loop or in a library. Nothing is
    stopped, and the process goes on. It can crash only if its main thread is in C code for long
    while other threads begin and end.
    """
    with chosen(node) as client:
        for line in client.stack(of, anywhere=anywhere).splitlines():
            click.echo(escaped(line))


@click.command()
@click.argument("of", required=False, metavar="[PID|NAME]", shell_complete=_complete)
@click.option("-f", "--follow", is_flag=True, help="Wait for more records.")
@_all_nodes
@node_option
@json_option
def logs(*, of: str | None, follow: bool, cluster: bool, node: str | None, as_json: bool) -> None:
    """Print the last log records of a running node, or of one process.

    The process may have ended. A name means all processes that have had it, including the earlier
    ones of a service that was restarted.
    """
    with chosen(node) as client, contextlib.suppress(KeyboardInterrupt):
        if not cluster:
            records: Iterable[LogRecord] = client.logs(of, follow=follow)
        elif follow:
            records = follow_all(client, of)
        else:
            records = _records_of_all(client, of)
        found = False
        for record in records:
            found = True
            _show_record(record, as_json=as_json)
        if not found:
            say(f"wsrelay: {_no_records(client, of, cluster=cluster)}")


def _records_of_all(client: ControlClient, of: str | None) -> Iterator[LogRecord]:
    """Yield the records of all nodes, the oldest first."""

    def records(one: ControlClient) -> list[LogRecord]:
        try:
            return [*one.logs(of, follow=False)]
        except ValueError:
            if of is None:
                raise
            return []  # another node knows it

    with asking_all(client, "log records", records) as answers:
        yield from sorted((one for _, some in answers for one in some), key=lambda one: one.time)


def _show_record(record: LogRecord, *, as_json: bool) -> None:
    if as_json:
        click.echo(escaped_in_json(msgspec.json.encode(record).decode()))
    else:
        moment = dt.datetime.fromtimestamp(record.time).astimezone()
        head = f"{moment:%Y-%m-%d %H:%M:%S} {record.level.upper():7}"
        click.echo(f"{head} {indented(record.text)}")
    sys.stdout.flush()


def _no_records(client: ControlClient, of: str | None, *, cluster: bool) -> str:
    """Say that there are none; of a cluster, also where else they may be."""
    if cluster:
        return f"no node has log records{_whose(of)} yet"
    if client.members() is None:
        return f"there are no log records{_whose(of)} yet"
    return (
        f"node {client.node().name} has no log records{_whose(of)} yet; "
        "--cluster shows those of all nodes"
    )


def _whose(of: str | None) -> str:
    return "" if of is None else f" of {of}"
