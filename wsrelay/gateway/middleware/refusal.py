"""The response of middleware that refuses a request, whether it is an upgrade or not."""

from __future__ import annotations

from http import HTTPStatus

from wsrelay.relay.asgi import Receive, Scope, Send, response
from wsrelay.relay.upgrade import deny

__all__ = ["refuse"]


async def refuse(
    scope: Scope, _receive: Receive, send: Send, status: int, *headers: tuple[bytes, bytes]
) -> None:
    """Answer with a status and its reason phrase."""
    body = f"{HTTPStatus(status).phrase}\n".encode()
    if scope["type"] == "websocket":
        await deny(scope, send, status, body, *headers)
        return
    for event in response(status, body, *headers):
        await send({**event, "type": f"http.response.{event['type']}"})
