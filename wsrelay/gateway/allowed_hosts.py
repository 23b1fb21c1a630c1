"""A server that answers only to the host names that it is known by."""

from __future__ import annotations

import logging
import time

from wsrelay.relay.asgi import App, Receive, Scope, Send, client_of, response, values
from wsrelay.relay.rate_limited_log import RateLimitedLog
from wsrelay.relay.upgrade import deny
from wsrelay.session.hosts import Hosts
from wsrelay.values.numbers import Numbers
from wsrelay.values.printable import printable

__all__ = ["AllowedHosts"]

logger = logging.getLogger(__name__)


class AllowedHosts:
    """Answers 403 to requests for other hosts, whatever their path; the log names `option`."""

    def __init__(self, app: App, hosts: Hosts, option: str, numbers: Numbers | None = None) -> None:
        self._numbers = numbers or Numbers()
        self._app = app
        self._hosts = hosts
        self._option = option
        self._refusals = RateLimitedLog(logger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        host = b", ".join(values(scope, b"host")).decode("latin-1")
        server = scope.get("server")
        if self._hosts.allow(host, server[0] if server else None):
            await self._app(scope, receive, send)
            return
        client = client_of(scope)
        self._refusals.warning(
            time.monotonic(),
            "%s: 403: Host '%s' is not one of this server's (%s); the client is %s",
            printable(scope["path"]),
            printable(host),
            self._option,
            client,
            client=client,
        )
        body = b"Forbidden: host not allowed\n"
        if scope["type"] == "websocket":
            self._numbers.refused["host"] += 1
            await deny(scope, send, 403, body)
            return
        for event in response(403, body):
            await send({**event, "type": f"http.response.{event['type']}"})
