"""A node with its control socket, and the commands that talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

from commands import run_here
from obeying import obedient
from support import client, received, relay_to, serving

from wsrelay import Node, WebSocketRelay


@contextlib.asynccontextmanager
async def visited(node: Node) -> AsyncIterator[tuple[str, Any]]:
    """A worker with a client; gives the worker's PID and the client."""
    pid = node.spawn(obedient)
    async with serving(WebSocketRelay(relay_to(pid), node=node)) as url, client(url) as one:
        await received(one)
        yield pid, one


async def typed(*arguments: str, code: int = 0) -> str:
    """Run the command as a shell does, in a process of its own; gives what it printed."""
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


async def wsrelay(*arguments: str, code: int = 0) -> str:
    """Run the command in this process; gives what it printed, as `typed` does."""
    done = await asyncio.to_thread(run_here, *arguments)
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout
