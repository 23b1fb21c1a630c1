"""A node with its control socket, and the commands that talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import Any

from obeying import obedient
from support import client, received, relay_to, serving

from wsrelay import Node, WebSocketRelay
from wsrelay.cli.main import main


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
    """Run the command in a thread of this process; gives what it printed, as `typed` does.

    Only the start of another interpreter is left out, which takes longer than all the rest.
    """
    ended, out, err = await asyncio.wait_for(asyncio.to_thread(_run, arguments), 20)
    assert ended == code, err
    return err if code else out


def _run(arguments: tuple[str, ...]) -> tuple[object, str, str]:
    """Run the command; gives its exit code and what it wrote to descriptors 1 and 2."""
    with contextlib.ExitStack() as stack:
        out, err = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        try:
            with _written_to(1, out.fileno()), _written_to(2, err.fileno()):
                main([*arguments], prog_name="wsrelay")
        except SystemExit as end:
            ended = end.code
        out.seek(0)
        err.seek(0)
        return ended, out.read().decode(), err.read().decode()


@contextlib.contextmanager
def _written_to(number: int, descriptor: int) -> Iterator[None]:
    """Let a standard stream lead to a file, with and without Python's buffer."""
    redirect = contextlib.redirect_stdout if number == 1 else contextlib.redirect_stderr
    before = os.dup(number)
    os.dup2(descriptor, number)
    try:
        with open(number, "w", closefd=False) as stream, redirect(stream):
            yield
    finally:
        os.dup2(before, number)
        os.close(before)
