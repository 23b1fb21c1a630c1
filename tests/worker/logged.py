"""Scripts that log, and what makes them do it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

from running import Running, client, closed, received

Write = Callable[..., Path]

ANSWER = """
    def handler():
        for message in process.inbox():
            if message.topic == "ws.message":
                exec(message.payload["data"])
                process.send(message.sender, "ws.send", {"type": "text", "data": "done"})
"""


def scripted(path: Path, top: str = "") -> Path:
    """Write a script whose handler does what its clients say, with this at its top."""
    head = "import logging, logging.config, os, sys, threading\nfrom wsrelay import process\n"
    path.write_text(head + textwrap.dedent(top) + textwrap.dedent(ANSWER))
    return path


def do(running: Running, *orders: str) -> None:
    """Have a process of its own do that."""
    with client(running.ws()) as websocket:
        for order in orders:
            websocket.send(order)
            assert received(websocket) == "done"


def crash(running: Running, order: str) -> None:
    with client(running.ws()) as websocket:
        websocket.send(order)
        assert closed(websocket) == (1011, "target process crashed")
