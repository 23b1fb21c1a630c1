"""Handlers that the commands find."""

from __future__ import annotations

import logging

from wsrelay import process


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
