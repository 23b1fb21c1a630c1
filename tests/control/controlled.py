"""A node with its control socket, and the commands that talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

from support import client, received, relay_to, serving

from wsrelay import Node, WebSocketRelay, process


def obedient() -> None:
    logger = logging.getLogger("obedient")
    child = process.spawn(idle)
    for message in process.inbox():
        if message.topic == "say":
            logger.warning("saying %s", message.payload["text"])
            process.send(message.payload["to"], "ws.send", {"type": "text", "data": "told"})
        elif message.topic == "ws.join":
            process.registry.register("obedient")
            process.send(message.sender, "ws.send", {"type": "text", "data": child})


def idle() -> None:
    for _ in process.inbox():
        pass


@contextlib.asynccontextmanager
async def visited(node: Node) -> AsyncIterator[tuple[str, Any]]:
    """A worker with a client; gives the worker's PID and the client."""
    pid = node.spawn(obedient)
    async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as one:
        await received(one)
        yield pid, one


async def wsrelay(*arguments: str, code: int = 0) -> str:
    """Run the command; gives what it printed."""
    done = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "wsrelay",
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    out, err = await asyncio.wait_for(done.communicate(), 20)
    assert done.returncode == code, err.decode()
    return (err if code else out).decode()
