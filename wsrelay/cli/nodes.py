"""Choosing the running node that a command is for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import click
import psutil

from wsrelay.control import ControlClient, ControlError, NodeGone, find_nodes
from wsrelay.control.runtime import runtime_directory
from wsrelay.node import NodeInfo
from wsrelay.values.printable import printable

from .running import fail, say
from .usage import duration

__all__ = ["chosen", "node_option"]

_PATIENCE: Final = 2.0
"""Seconds that each of several nodes gets to identify itself."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def node_option(command: _Command) -> _Command:
    """Add `--node` to a command."""
    text = "The node: its OS PID, name, or :PORT. Needed only if more than one is running."
    return click.option("--node", metavar="NODE", help=text)(command)


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
        meant = clients if node is None else [client for client in clients if _is(client, node)]
        if not meant:
            _fail(f"no node {node!r} is running; the running nodes are:", clients)
        if len(meant) > 1:
            command = click.get_current_context().info_name
            example = f"'wsrelay {command} --node {_parts(meant[0])[1]}'"
            _fail(f"{len(meant)} nodes are running; choose one with --node, as in {example}", meant)
        yield meant[0]
    except (ControlError, NodeGone, ValueError) as error:
        fail(str(error))


def _parts(client: ControlClient) -> tuple[str, str]:
    """Return a node's name and OS PID, which make up its socket's name."""
    name, _, os_pid = client.path.stem.rpartition("-")
    return name, os_pid


def _is(client: ControlClient, node: str) -> bool:
    if node in (client.path.stem, *_parts(client)):
        return True
    if not node.startswith(":") or (info := _asked(client)) is None:
        return False
    return any(address.endswith(node) for address in info.addresses)


def _asked(client: ControlClient) -> NodeInfo | None:
    try:
        return client.node(_PATIENCE)
    except (NodeGone, ValueError):
        return None


def _fail(line: str, clients: Sequence[ControlClient]) -> None:
    """End the command with a line and a list of the nodes."""
    rows = [("OS PID", "NAME", "UPTIME", "ADDRESS", "APPLICATION")]
    for client in clients:
        name, os_pid = _parts(client)
        info = _asked(client)
        if info is None:
            rows.append((os_pid, name, "-", "-", "(it does not answer)"))
        else:
            addresses = ", ".join(info.addresses) or "-"
            rows.append((os_pid, name, duration(info.uptime), addresses, _application(info)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    say(f"wsrelay: {line}")
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join(["", *cells, row[-1]]))
    raise SystemExit(1)


def _application(info: NodeInfo) -> str:
    """Return what a node serves, or, inside another server, that server's command line."""
    if info.application:
        return printable(info.application)
    try:
        return printable(" ".join(psutil.Process(info.os_pid).cmdline()))
    except psutil.Error:
        return "-"
