"""Nodes of one cluster over a test's NATS, in one event loop."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Mapping, Sequence

from nats_ports import cluster_of
from nats_servers import NatsServer
from support import processes, until

from wsrelay import Node, Service, Supervisor
from wsrelay.peers.options import Cluster
from wsrelay.values.targets import TargetEntry

__all__ = ["clustered"]


@contextlib.asynccontextmanager
async def clustered(
    server: NatsServer,
    entries: Mapping[str, TargetEntry],
    *names: str,
    services: Sequence[Service] = (),
) -> AsyncIterator[list[Node]]:
    """Nodes of those names, with the same entries, hosts and services, that know each other."""
    name = cluster_of(server).name
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for one in names:
            node = Node(
                hosts=[processes()],
                entries=entries,
                cluster=Cluster([server.url], name=name, node=one, lease=3),
            )
            Supervisor(node, services)
            nodes.append(await stack.enter_async_context(node))
        for node in nodes:
            for other in nodes:
                if other is not node:
                    await until(functools.partial(_knows, node, other.name), f"{other.name} is up")
        yield nodes


def _knows(node: Node, other: str) -> bool:
    return node.engine.elsewhere.find(f"{{{other}@processes|0-0}}") is not None
