"""A node from configuration files, for an application with a server of its own."""

from __future__ import annotations

from pathlib import Path

from wsrelay.node import Node
from wsrelay.values import extras

__all__ = ["from_config"]


def from_config(*paths: str | Path, name: str | None = None) -> Node:
    """Return a node with the hosts, processes and services of configuration files.

    Their servers and routers are ignored: the application around the node has its own. `name` is
    the node's, instead of `local` or, in a cluster, of what `cluster.node` says. Raises
    `wsrelay.config.ConfigError`, and `ImportError` if the extra `config` is not installed.
    """
    with extras.named():
        from . import assembly  # noqa: PLC0415 - it needs the extra
    configuration = assembly.load([Path(path) for path in paths])
    cluster = None
    if (section := configuration.cluster) is not None:
        cluster, name = section.options(**({} if name is None else {"node": name})), None
    node, _ = assembly.configured_node(configuration, name, cluster)
    return node
