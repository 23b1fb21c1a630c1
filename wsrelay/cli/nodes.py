"""Choosing the running node that a command is for."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import click
import psutil
from click.shell_completion import CompletionItem

from wsrelay.control import ControlClient, ControlError, NodeGone, find_nodes
from wsrelay.control.runtime import runtime_directory
from wsrelay.node import NodeInfo
from wsrelay.values.printable import printable

from .running import fail, say
from .usage import duration

__all__ = ["anywhere_option", "chosen", "complete", "node_option"]

_PATIENCE: Final = 2.0
"""Seconds that each of several nodes gets to identify itself."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def node_option(command: _Command) -> _Command:
    """Add `--node` to a command."""
    text = (
        "The node: its OS PID, name, :PORT, or a part of its application's name; or another node "
        "of its cluster, by its name. Needed only if more than one is running."
    )
    return click.option("--node", metavar="NODE", help=text)(command)


def anywhere_option(command: _Command) -> _Command:
    """Add `--cluster` to a command that is for one process."""
    text = "Look on all nodes for it: by a part of its PID, or a name that only its node knows."
    return click.option("--cluster", "anywhere", is_flag=True, help=text)(command)


@contextlib.contextmanager
def chosen(node: str | None) -> Iterator[ControlClient]:
    """Yield the running node that is meant; ends the command if there is none or several."""
    directory = runtime_directory()
    try:
        clients = find_nodes(directory)
        if not clients:
            fail(
                f"this user has no running node (looked in {directory}); "
                "start one with 'wsrelay run TARGET' or 'wsrelay serve'"
            )
        meant = clients if node is None else _meant(clients, node)
        if not meant:
            _fail(f"no node {node!r} is running; the running nodes are:", clients)
        if len(meant) > 1:
            command = click.get_current_context().info_name
            example = f"'wsrelay {command} --node {_parts(meant[0])[1]}'"
            _fail(f"{len(meant)} nodes are running; choose one with --node, as in {example}", meant)
        yield meant[0]
    except (ControlError, NodeGone, ValueError) as error:
        fail(str(error))


def complete(_c: click.Context, _p: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a PID or name of a process of a running node of this user."""
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


def _parts(client: ControlClient) -> tuple[str, str]:
    """Return a node's name and OS PID, which make up its socket's name."""
    name, _, os_pid = client.path.stem.rpartition("-")
    return name, os_pid


def _meant(clients: Sequence[ControlClient], node: str) -> list[ControlClient]:
    """Return those that are meant, by what is theirs alone before parts of what they serve."""
    meant = [client for client in clients if node in (client.path.stem, *_parts(client))]
    if meant:
        return meant
    infos = [(client, _asked(client)) for client in clients]
    known = [(client, info) for client, info in infos if info is not None]
    if node.startswith(":"):
        return [one for one, info in known if any(at.endswith(node) for at in info.addresses)]
    for client, _ in known:
        if node in _others(client):
            return [client.on(node)]
    part = node.lower()
    return [client for client, info in known if part and part in _application(info).lower()]


def _others(client: ControlClient) -> list[str]:
    """Return the names of the other nodes of a node's cluster."""
    try:
        return [one.name for one in client.members() or () if not one.asked]
    except (NodeGone, ValueError):
        return []


def _asked(client: ControlClient) -> NodeInfo | None:
    try:
        return client.node(_PATIENCE)
    except (NodeGone, ValueError):
        return None


def _fail(line: str, clients: Sequence[ControlClient]) -> None:
    """End the command with a line and a list of the nodes."""
    rows = [("OS PID", "NAME", "STARTED", "ADDRESS", "APPLICATION")]
    for client in clients:
        name, os_pid = _parts(client)
        info = _asked(client)
        if info is None:
            rows.append((os_pid, name, "-", "-", "(it does not answer)"))
        else:
            addresses = ", ".join(info.addresses) or "-"
            rows.append((os_pid, name, _started(info), addresses, _application(info)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    say(f"wsrelay: {line}")
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join(["", *cells, row[-1]]))
    raise SystemExit(1)


def _started(info: NodeInfo) -> str:
    """Return when a node has started, and how long ago that is."""
    moment = dt.datetime.now().astimezone() - dt.timedelta(seconds=info.uptime)
    return f"{moment:%Y-%m-%d %H:%M:%S} ({duration(info.uptime)} ago)"


def _application(info: NodeInfo) -> str:
    """Return what a node serves, or, inside another server, that server's command line."""
    if info.application:
        return printable(info.application)
    try:
        return printable(" ".join(psutil.Process(info.os_pid).cmdline()))
    except psutil.Error:
        return "-"
