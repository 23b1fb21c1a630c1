"""Rooms that the console is to find, and one that has all that it shows."""

from __future__ import annotations

import logging
import time

from wsrelay import process

_kept: list[bytearray] = []


def idle() -> None:
    for _ in process.inbox():
        pass


def talking() -> None:
    """Have a child, a name and a log."""
    process.registry.register("talker")
    process.spawn(idle)
    for message in process.inbox():
        if message.topic == "say":
            logging.getLogger("talker").warning("saying %s", message.payload)
        elif message.topic == "ws.join":
            process.send(message.sender, "ws.send", {"type": "text", "data": "welcome"})


def failing() -> None:
    """Fail with what it is told."""
    for message in process.inbox():
        raise ValueError(message.payload)


def room() -> None:
    """Do what its first client says."""
    for message in process.inbox():
        if message.client is None or message.topic != "ws.message":
            continue
        match message.text:
            case "spin":
                while True:
                    pass
            case "hoard":
                while True:
                    _kept.append(bytearray(b"x" * 4_000_000))
                    time.sleep(0.2)
            case "crash":
                raise RuntimeError("the <b>ledger</b> does not add up")
            case "flood":
                for _ in range(60):
                    message.client.send("x" * 100_000)
            case text:
                message.client.send(text)
