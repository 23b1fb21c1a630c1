"""What the tests of clients of other nodes share."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from pair import Cluster, nothing_is_left
from support import endpoint, serving, until

from wsrelay import PID, Node, RelayResponse, WebSocketRelay, process


@contextlib.asynccontextmanager
async def front(
    node: Node,
    target: str | None,
    /,
    front_end: str = "direct",
    config: dict[str, Any] | None = None,
    relay: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[str]:
    """A server of that node, which relays every client to one process."""

    def answer(_: object) -> RelayResponse:
        return RelayResponse(target, **options)

    app = WebSocketRelay(endpoint(answer), node=node, **(relay or {}))
    async with serving(app, front_end, **(config or {})) as url:
        yield url


def lives_for_its_clients() -> None:
    """Echo, and end with the last client."""
    process.set_options(end_when_empty=0)
    for message in process.inbox():
        if message.client and message.topic == "ws.join":
            message.client.send("welcome")
        elif message.client and message.topic == "ws.message":
            message.client.send(message.data)


def move_and_return(to: str) -> None:
    """Transfer the client that comes, and return at once."""
    for message in process.inbox():
        if message.client and message.topic == "ws.join":
            message.client.transfer(to)
            return


def the_client(node: Node) -> PID:
    """The one connection of a node."""
    [pid] = node.connections
    return pid


async def nobody_is_left(nodes: Cluster) -> None:
    """No client and no process is left, and nothing that was kept for one."""
    for name, node in nodes.nodes.items():
        await until(
            lambda node=node: not node.workers and not node.connections,  # type: ignore[misc]
            f"all of {name} are gone",
        )
    await nodes.quiet()
    for name, node in nodes.nodes.items():
        assert len(nodes.exchange(name).neighbours) == len(nodes.nodes) - 1, name
        elsewhere: Any = node.engine.elsewhere
        assert not node.clients.guests, name
        assert not node.clients.leaving, name
        assert not elsewhere.serves, name
        assert not elsewhere.targets._numbered, name
        assert not elsewhere.targets._targets, name
        assert not any(elsewhere.guests._visits.values()), name
        assert not elsewhere.guests._at, name
    nothing_is_left(nodes)
