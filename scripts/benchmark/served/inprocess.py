"""Bare ASGI applications: no process behind them, no framework in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from .work import serve

__all__ = ["echo", "room", "service"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_members: set[Send] = set()


async def _texts(scope: Message, receive: Receive, send: Send) -> AsyncIterator[str]:
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        yield message["text"]


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    """Send each text back."""
    async for text in _texts(scope, receive, send):
        await send({"type": "websocket.send", "text": text})


async def service(scope: Message, receive: Receive, send: Send) -> None:
    """Answer each text; what it computes, it computes in the event loop."""
    async for text in _texts(scope, receive, send):
        await send({"type": "websocket.send", "text": serve(text)})


async def room(scope: Message, receive: Receive, send: Send) -> None:
    """Send each text to everybody."""
    _members.add(send)
    try:
        async for text in _texts(scope, receive, send):
            for member in [*_members]:
                await member({"type": "websocket.send", "text": text})
    finally:
        _members.discard(send)
