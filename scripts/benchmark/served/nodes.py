"""A node, in a cluster or alone, whose clients come to processes by their names.

Of two nodes the far one runs what the clients of the near one come to; a node alone runs it itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from wsrelay import Cluster, HostOptions, NameNotFound, Node, RelayResponse, WebSocketRelay
from wsrelay.aio import process

__all__ = ["app"]

_SERVED = Path(__file__).parent
_ROOMS = 32
_START = 30.0
_MODE = os.environ["BENCH_MODE"].removeprefix("far-")
_NATS, _NAME = os.environ.get("BENCH_NATS"), os.environ.get("BENCH_NODE")

_IS_FAR = _NAME != "near"
"""Whether this node runs what clients come to."""

_node = Node(
    hosts=[HostOptions(max_processes=600)],
    cluster=Cluster([_NATS], name="bench", node=_NAME) if _NATS else None,
)
_numbers = itertools.count()

# The names of processes to which clients come in turn, or of the one that is asked; their function.
_names, _function = {
    "echo": ([f"room:{number}" for number in range(_ROOMS)], "rooms.py:room"),
    "room": (["room"], "rooms.py:room"),
    "idle": ([], ""),
}.get(_MODE, (["asked"], "asking.py:asked"))


@contextlib.asynccontextmanager
async def lifespan(_: object) -> AsyncIterator[None]:
    """Run the node; it serves once all names are known to it."""
    async with _node:
        async with asyncio.timeout(_START):
            for name in _names:
                if _IS_FAR:
                    await process.get_or_spawn(name, f"{_SERVED / _function}")
                while not await _known(name):  # noqa: ASYNC110 - a name has no event
                    await asyncio.sleep(0.02)
        yield


async def _known(name: str) -> bool:
    try:
        await process.registry.lookup(name)
    except NameNotFound:
        return False
    return True


async def connect(_: Request) -> RelayResponse:
    """Send the client to the next of the processes, or to one on this node that measures."""
    if _function.startswith("rooms"):
        return RelayResponse(await process.registry.lookup(_names[next(_numbers) % len(_names)]))
    return RelayResponse(target=f"{_SERVED / 'asking.py'}:asks")


app = WebSocketRelay(Starlette(routes=[Route("/ws", connect)], lifespan=lifespan), node=_node)
