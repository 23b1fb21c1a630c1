"""Ending the program around a node as SIGTERM ends it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .node import Node

__all__ = ["end_process"]

_ending: set[asyncio.Task[None]] = set()


def end_process(node: Node) -> None:
    """Send SIGTERM to this process: what serves the application ends, and so does the node.

    If the process does not handle it, the node ends first: SIGTERM would kill everything at once.
    """
    task = asyncio.get_running_loop().create_task(_end(node))
    _ending.add(task)
    task.add_done_callback(_ending.discard)


async def _end(node: Node) -> None:
    if signal.getsignal(signal.SIGTERM) in {signal.SIG_DFL, signal.SIG_IGN}:
        await node.aclose()
    os.kill(os.getpid(), signal.SIGTERM)
