"""Handlers that monitor, link and end connections."""

from __future__ import annotations

import os
import signal
from typing import Any

from relating import both, crash, error_of, more_events, next_event, next_payload, now


async def watching(face: Any, client: str) -> None:
    await now(face.send(client, "ws.send", {"type": "text", "data": "watching"}))


@both
async def watch_connection(face: Any, client: str) -> list[Any]:
    """Monitor a connection and let its client know; gives its end, and that of one gone."""
    face.monitor(client)
    await watching(face, client)
    first = await next_event(face)
    face.monitor(client)
    return [first, await next_event(face), await more_events(face)]


@both
async def link_connection(face: Any, client: str, traps: bool) -> list[Any]:
    face.set_options(trap_links=traps)
    face.link(client)
    await watching(face, client)
    first = await next_event(face)
    return [first, await more_events(face)]


@both
async def link_connection_and_wait(face: Any, client: str) -> str:
    """Link to a connection and wait for a message."""
    face.link(client)
    await watching(face, client)
    return str(await next_payload(face))


@both
async def link_connection_and_end(face: Any, client: str, way: str) -> str:
    face.link(client)
    if way == "unlink":
        face.unlink(client)
    await watching(face, client)
    if way == "return":
        return "done"
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return crash()


@both
async def close_connection(face: Any, client: str, payload: Any) -> list[Any]:
    """Close a connection and see how it ended."""
    face.monitor(client)
    await now(face.send(client, "ws.close", payload))
    return [await next_event(face)]


@both
async def end_connection(face: Any, way: str, client: str, *args: Any) -> list[Any]:
    await now(face.registry.register("client", client))
    face.groups.join("clients", client)
    face.monitor(client)
    getattr(face, way)("client", *args)
    event = await next_event(face)
    return [
        event,
        await error_of(face.registry.lookup, "client"),
        await now(face.groups.members("clients")),
    ]
