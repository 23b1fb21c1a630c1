"""Handlers that end in each way."""

from __future__ import annotations

import os
import signal
import sys

from wsrelay import process


def ends_when_told() -> None:
    """Do what messages say."""
    for message in process.inbox():
        match message.topic:
            case "return":
                return
            case "raise":
                deeper(message.payload)
            case "exit":
                sys.exit(message.payload)
            case "signal":
                os.kill(os.getpid(), signal.SIGKILL)
            case "flood":  # more groups than a process may be in
                for number in range(20_000):
                    process.groups.join(f"group {number}")
            case "link":
                process.link(process.spawn(ends_when_told))
            case "exec":
                process.exec(idles)
            case "cancel":
                process.cancel(message.payload, "make room")


def deeper(text: str, depth: int = 400) -> None:
    """Raise with a long traceback and a long message."""
    if depth:
        other = deeper if depth % 2 else deeper_too
        other(text, depth - 1)
    raise ZeroDivisionError(text)


def deeper_too(text: str, depth: int) -> None:
    """Recur by another way, so that the traceback does not fold equal lines."""
    deeper(text, depth)


def idles() -> None:
    for _ in process.inbox():
        pass


def closes(code: int, reason: str) -> None:
    """Close the client that says something, or end if it says so."""
    for message in process.inbox():
        if message.topic == "ws.message":
            if message.payload["data"] == "return":
                return
            process.send(message.sender, "ws.close", {"code": code, "reason": reason})
