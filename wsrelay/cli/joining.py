"""The options with which `run` and `serve` make a node one of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsrelay.values import durations
from wsrelay.values.bounds import InvalidOptions
from wsrelay.values.pid import is_node_name

from .options import parsed

if TYPE_CHECKING:
    from wsrelay.peers.options import Cluster

__all__ = ["cluster_of", "cluster_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = {"servers": "--cluster", "node": "--node", "timeout": "--cluster-timeout"}


def cluster_options(command: _Command) -> _Command:
    """Add `--cluster` (as `servers`), `--node` and `--cluster-timeout` (as `timeout`)."""
    for option in (
        click.option(
            "--cluster-timeout",
            "timeout",
            callback=parsed(durations.parse),
            metavar="DURATION",
            help="How long to wait for NATS at the start; the default is 30s.",
        ),
        click.option(
            "--node",
            metavar="NAME",
            callback=parsed(_node_name),
            help="The node's part of all PIDs; the default is 'local', in a cluster the machine's "
            "name.",
        ),
        click.option(
            "--cluster",
            "servers",
            multiple=True,
            metavar="nats://HOST:PORT",
            help="Join the cluster of nodes over this NATS server; may be repeated.",
        ),
    ):
        command = option(command)
    return command


def cluster_of(
    build: Callable[..., Cluster] | None,
    servers: tuple[str, ...],
    node: str | None,
    timeout: float | None,
) -> Cluster | None:
    """Return the cluster that the options say, None for none; ends the command for wrong ones.

    `build` takes what they say and gives the rest, None if nothing else says which cluster it is.
    """
    if build is None and not servers:
        if timeout is not None:
            raise click.UsageError("--cluster-timeout belongs to a cluster: give --cluster too")
        return None
    from wsrelay.peers.options import Cluster  # noqa: PLC0415 - for who wants a cluster

    options: dict[str, Any] = {"servers": servers or None, "node": node, "timeout": timeout}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Cluster(**given) if build is None else build(**given)
    except InvalidOptions as error:
        name, message = error.problems[0]
        raise click.BadParameter(message, param_hint=f"'{_OPTIONS.get(name, name)}'") from None


def _node_name(text: str) -> str:
    if not is_node_name(text):
        raise ValueError(f"{text!r} is not made of A-Z a-z 0-9 _ . -")
    return text
