"""Commands for the nodes of a cluster: `nodes`, `drain`, and what `ps --cluster` lists."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem

from wsrelay.control import ControlClient, ControlError, NodeGone, find_nodes
from wsrelay.control.runtime import runtime_directory
from wsrelay.errors import MissingExtra
from wsrelay.node import ConnectionInfo, NodeInfo, ProcessInfo
from wsrelay.node.info import LinkInfo, MemberInfo
from wsrelay.values import extras
from wsrelay.values.printable import printable

from . import cells
from .nodes import chosen, node_option
from .options import json_option
from .running import fail, say
from .usage import UsageSampler, duration, size, with_usage

try:
    with extras.named():
        from . import tables
except MissingExtra:  # tables are plain then, however wide the terminal is
    tables = None  # type: ignore[assignment]

__all__ = [
    "all_connections",
    "all_nodes",
    "asking_all",
    "drain",
    "list_all",
    "nodes",
    "show_processes",
    "together",
]

T = TypeVar("T")

_AT_ONCE: Final = 8
"""Nodes that are asked for their processes at the same time."""

_ENDED: Final = {"dead", "gone", "misfit"}
"""States in which a node has no processes, or is no member."""

_HEADINGS: Final = (
    *("NODE", "STATE", "INCARNATION", "VERSION", "PROTOCOL", "PROCESSES", "CLIENTS", "RENEWED"),
    "LINK",
)


def _complete(_c: click.Context, _p: click.Parameter, incomplete: str) -> list[CompletionItem]:
    found: set[str] = set()
    try:
        for client in find_nodes(runtime_directory()):
            found |= {one.name for one in client.members() or ()}
    except (ControlError, NodeGone, ValueError):
        pass  # the command itself says why
    return [CompletionItem(name) for name in sorted(found) if name.startswith(incomplete)]


@click.command()
@node_option
@json_option
def nodes(*, node: str | None, as_json: bool) -> None:
    """List the nodes of a running node's cluster, as that node knows them."""
    with chosen(node) as client:
        members = _members(client)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(members), indent=2).decode())
    else:
        click.echo(cells.plain(_HEADINGS, [_cells(one) for one in members]))


@click.command()
@click.argument("name", required=False, metavar="[NODE]", shell_complete=_complete)
@node_option
def drain(*, name: str | None, node: str | None) -> None:
    """Take a node out of service: nothing starts there any more, and it ends as at SIGTERM.

    NODE is the name of any node of the cluster; without it, it is the node that is asked. The
    command does not wait for the end.
    """
    with chosen(node) as client:
        drained = (client.on(name) if name else client).drain()
    click.echo(f"node {drained} drains, and ends when its clients and processes have")


def _members(client: ControlClient) -> list[MemberInfo]:
    members = client.members()
    if members is None:
        fail(
            f"node {client.node().name} is in no cluster; --cluster of 'wsrelay run' and 'wsrelay "
            "serve', or the key cluster of the configuration, makes it a node of one"
        )
    return members


def living(client: ControlClient) -> list[MemberInfo]:
    """Return the nodes of its cluster that may have processes."""
    return [one for one in _members(client) if one.state not in _ENDED]


def _cells(one: MemberInfo) -> tuple[str, ...]:
    running = most = "-"
    if one.hosts is not None:
        running, most = (str(sum(load[at] for load in one.hosts.values())) for at in (0, 1))
    return (
        f"{one.name} (asked)" if one.asked else one.name,
        one.state,
        one.incarnation or "-",
        printable(one.version or "-"),
        _or_dash(one.protocol),
        f"{running}/{most}" if one.hosts is not None else "-",
        _or_dash(one.clients),
        "-" if one.unrenewed is None else f"{duration(one.unrenewed)} ago",
        _link(one.link),
    )


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)


def _link(link: LinkInfo | None) -> str:
    """Say how far a link is behind."""
    if link is None:
        return "-"
    behind = link.backlog + link.unacknowledged
    state = "" if link.connected else "disconnected, "
    if not behind:
        return f"{state}nothing waits"
    if not link.delay:  # it was not sent yet
        return f"{state}{size(behind)} behind"
    return f"{state}{size(behind)} behind for {duration(link.delay)}"


# Processes


def show_processes(processes: Sequence[ProcessInfo], usage: UsageSampler, *, as_json: bool) -> None:
    """Print processes, as a table or as JSON."""
    if as_json:
        click.echo(json.dumps([with_usage(one, usage) for one in processes], indent=2))
    elif tables:
        page = tables.console()
        page.print(tables.processes_table(processes, usage, page, "fold"))
    else:
        rows = [cells.process_cells(one, usage) for one in processes]
        click.echo(cells.plain(cells.PROCESSES, rows))


def list_all(client: ControlClient, *, as_json: bool) -> None:
    """Print the processes of all nodes; ends with 1 if some could not be asked, and names these.

    CPU and memory are known of those of the node that is asked.
    """
    usage = UsageSampler()
    with asking_all(client, "processes", ControlClient.processes) as answers:
        if not client.at:
            usage.sample(client.node())
        found = [process for _, processes in answers for process in processes]
        show_processes(found, usage, as_json=as_json)


@contextlib.contextmanager
def asking_all(
    client: ControlClient, what: str, ask: Callable[[ControlClient], T]
) -> Iterator[list[tuple[str, T]]]:
    """Ask all nodes of a cluster for something; yields those that have answered, with the answers.

    Ends with 1 if some have not, and names these.
    """
    found: list[tuple[str, T]] = []
    problems: list[str] = []
    members = living(client)

    def asked(member: MemberInfo) -> T | Exception:
        try:
            return ask(client.on(member.name))
        except (NodeGone, ValueError) as error:
            return error

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for member, answer in zip(members, pool.map(asked, members), strict=True):
            if isinstance(answer, Exception):
                problems.append(f"the {what} of node {member.name} are not known: {answer}")
            else:
                found.append((member.name, answer))
    yield found
    for problem in problems:
        say(f"wsrelay: {problem}")
    if problems:
        raise SystemExit(1)


@contextlib.contextmanager
def all_nodes(client: ControlClient) -> Iterator[list[NodeInfo]]:
    """Yield what all nodes of a cluster are and have, as `asking_all` does."""
    with asking_all(client, "processes and connections", lambda one: one.node()) as answers:
        yield [info for _, info in answers]


def all_connections(infos: Sequence[NodeInfo]) -> list[ConnectionInfo]:
    """Return the connections of some nodes, each as its own node knows it where that is one."""
    found: dict[str, ConnectionInfo] = {}
    for info in infos:
        own = f"{{{info.name}@"
        for one in info.connections:
            if one.pid.startswith(own) or one.pid not in found:
                found[one.pid] = one
    return [*found.values()]


def together(infos: Sequence[NodeInfo]) -> NodeInfo:
    """Return some nodes as one: the first of them, with what all of them have."""
    return msgspec.structs.replace(
        infos[0],
        hosts=[
            msgspec.structs.replace(host, name=f"{host.name}@{info.name}")
            for info in infos
            for host in info.hosts
        ],
        processes=[process for info in infos for process in info.processes],
        connections=all_connections(infos),
        dead_letters=sum(info.dead_letters for info in infos),
        buffered=sum(info.buffered for info in infos),
        max_buffered=sum(info.max_buffered for info in infos),
    )
