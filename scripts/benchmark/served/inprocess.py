"""A bare ASGI application: no process behind it, no framework in front of it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .work import ANSWERS

__all__ = ["app"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MODE = os.environ["BENCH_MODE"]
_everybody: set[Send] = set()


async def app(_scope: Message, receive: Receive, send: Send) -> None:
    """Answer each text, in a room to everyone; computing an answer blocks the event loop."""
    answer = ANSWERS[_MODE]
    members = _everybody if _MODE == "room" else set()
    await receive()
    await send({"type": "websocket.accept"})
    members.add(send)
    try:
        while (message := await receive())["type"] == "websocket.receive":
            text = answer(message["text"])
            for member in [*members]:
                await member({"type": "websocket.send", "text": text})
    finally:
        members.discard(send)
