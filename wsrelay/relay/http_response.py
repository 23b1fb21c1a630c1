"""The response to a plain HTTP request on its way to the client."""

from __future__ import annotations

import logging

from wsrelay.errors import RelayRefused
from wsrelay.node import Node
from wsrelay.session import header
from wsrelay.values.printable import shortened

from .asgi import RETRY_AFTER, Event, Send, response, strip
from .probe import HandlerResponse
from .request_spawns import RequestSpawns
from .upgrade import abandon

__all__ = ["HTTPResponse"]

logger = logging.getLogger(__name__)


class HTTPResponse:
    """Passes an application's response on, without the relay header.

    If the header applies, the client gets 426 instead. A 500 is held back as long as it is small:
    a framework that answers its handlers' exceptions with 500 then raises them again, and for a
    full host the 500 becomes a 503.
    """

    def __init__(self, node: Node, send: Send, spawned: RequestSpawns) -> None:
        self.started = False
        self._node = node
        self._spawned = spawned
        self._send = send
        self._refused = False
        self._held: list[Event] = []

    async def send(self, event: Event) -> None:
        """Act as `send` for the application."""
        if event["type"] == "http.response.start":
            event = {**event, "headers": list(event.get("headers", ()))}
            answer = HandlerResponse(event)
            event["headers"] = strip(event["headers"])
            self._spawned.drop()
            if answer.relay is not None:
                await self._refuse(answer.relay)
            elif answer.status == 500:  # noqa: PLR2004 - Internal Server Error
                self._held.append(event)
                return
        if self._refused:
            return
        if self._held:
            self._held.append(event)
            if event.get("more_body"):
                await self.release()
            return
        self.started = True
        await self._send(event)

    async def release(self) -> None:
        """Send what is held back."""
        held, self._held = self._held, []
        for event in held:
            self.started = True
            await self._send(event)

    async def unavailable(self) -> None:
        """Answer 503 instead of what is held back."""
        self._held.clear()
        await self._respond(503, b"Service Unavailable\n", RETRY_AFTER)

    async def refuse(self, status: int, text: str) -> None:
        """Answer instead of the application."""
        await self._respond(status, text.encode())

    async def _refuse(self, relay: bytes) -> None:
        self._refused = True
        try:
            abandon(self._node, header.parse(relay, self._node.name))
        except RelayRefused as error:
            logger.error("%s", shortened(str(error)))  # noqa: TRY400 - one line
        await self._respond(426, b"Upgrade Required: connect with a WebSocket\n")

    async def _respond(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        self.started = True
        for event in response(status, body, *headers):
            await self._send({**event, "type": f"http.response.{event['type']}"})
