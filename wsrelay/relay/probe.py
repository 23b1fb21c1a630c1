"""Asking an application, over HTTP, what to do with a WebSocket upgrade."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

from wsrelay.errors import HostFailed, HostFull, NoQuorum
from wsrelay.session.header import HEADER

from .asgi import App, Event, Headers, Scope, offered, request_headers, strip
from .request_spawns import RequestSpawns

__all__ = [
    "ASKING",
    "NOT_NOW",
    "HandlerProbe",
    "HandlerResponse",
    "NativeResponse",
    "http_scope",
    "relay_headers",
]

ASKING: Final = "wsrelay.asking"
"""Extension that marks the `http` scope made from an upgrade, for relays further inside."""

NOT_NOW: Final = (HostFull, HostFailed, NoQuorum)
"""What a process cannot be started for now; answered with 503."""

logger = logging.getLogger(__name__)

_NAME: Final = HEADER.encode()

_NOT_WITH_101: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        _NAME,
    )
)
"""Hop-by-hop headers (RFC 9110 section 7.6.1) and our own."""


class NativeResponse(Exception):  # noqa: N818 - not an error: it says how the application answers
    """The application answered the probe with an event of a `websocket` scope."""


class HandlerResponse:
    """The start of the application's response; `headers` as given, with names in lower case."""

    def __init__(self, event: Event) -> None:
        self.status: int = event["status"]
        self.headers: Headers = [(bytes(k).lower(), bytes(v)) for k, v in event.get("headers", ())]

    @property
    def relay(self) -> bytes | None:
        """The relay header's value, if the answer is a 2xx response that has one."""
        values = [value for name, value in self.headers if name == _NAME]
        return b", ".join(values) if values and 200 <= self.status < 300 else None  # noqa: PLR2004


class HandlerProbe:
    """The application running with the `http` scope of an upgrade.

    `answer` is done when its response starts; the body waits until it is passed on or dropped.
    Whatever comes next, the application finishes in parallel. What it spawns is recorded in
    `spawned`.
    """

    def __init__(self, app: App, scope: Scope, spawned: RequestSpawns) -> None:
        loop = asyncio.get_running_loop()
        self._spawned = spawned
        self.answer: asyncio.Future[HandlerResponse] = loop.create_future()
        self._decision: asyncio.Future[Callable[[Event], Awaitable[None]] | None] = (
            loop.create_future()
        )
        self._gone = asyncio.Event()
        self._asked = False
        self._kept: list[Event] = []
        self._scope = http_scope(scope)
        self.task = asyncio.create_task(self._run(app), name=f"asking {scope['path']}")

    async def _run(self, app: App) -> None:
        self._spawned.watch()
        await app(self._scope, self._receive, self._send)

    async def started(self) -> HandlerResponse | None:
        """Wait for the start of the response; None if the application ended without one.

        Raises whatever the application raised before it answered, or `NativeResponse`.
        """
        await asyncio.wait((self.answer, self.task), return_when=asyncio.FIRST_COMPLETED)
        if self.answer.done():
            return self.answer.result()
        self.task.result()
        return None

    @property
    def route(self) -> str:
        """The path of the route that has answered, if the framework notes it: `/rooms/{name}`."""
        path = getattr(self._scope.get("route"), "path", "")
        return path if isinstance(path, str) else ""

    def drop_body(self) -> None:
        """Discard the response's body."""
        self._decision.set_result(None)

    def end(self) -> None:
        """Let the application finish as if its client had gone: the client has its answer."""
        if not self._decision.done():
            self.drop_body()
        self.client_gone()

    async def stop(self) -> None:
        """End an application that treated the probe as the upgrade itself."""
        self.task.cancel()
        await asyncio.wait({self.task})
        if not self.task.cancelled() and (error := self.task.exception()) is not None:
            logger.debug("the probe was answered with a WebSocket event, then: %r", error)

    async def pass_body(self, forward: Callable[[Event], Awaitable[None]]) -> None:
        """Pass the response's body on and wait for the application to finish."""
        for event in self._kept:
            await forward(event)
        if not self._decision.done():
            self._decision.set_result(forward)
        await asyncio.wait({self.task})

    async def unavailable(self) -> Exception | None:
        """Return the error behind an error response, if it is one of `NOT_NOW`.

        A framework answers its handlers' exceptions with 500 and raises them again afterwards.
        """
        self._decision.set_result(self._keep)
        await asyncio.wait({self.task})
        error = None if self.task.cancelled() else self.task.exception()
        return error if isinstance(error, NOT_NOW) else None

    async def _keep(self, event: Event) -> None:
        self._kept.append(event)

    def client_gone(self) -> None:
        """Let the application's `receive` return `http.disconnect`."""
        self._gone.set()

    async def finished_or(self, gone: Coroutine[None, None, None]) -> None:
        """Wait for the application to finish or for the client to go."""
        client = asyncio.ensure_future(gone)
        await asyncio.wait((self.task, client), return_when=asyncio.FIRST_COMPLETED)
        client.cancel()

    async def finish(self) -> None:
        """Wait for the application to finish, its client being gone; raises what it raises."""
        self.end()
        if self.task.cancelled() or (self.task.done() and not self.answer.done()):
            return  # `stop` has ended it, or `started` has reported its end
        try:
            await self.task
        except BaseException:
            self.task.cancel()
            raise

    async def _receive(self) -> Event:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            if not self.answer.done():
                self.answer.set_result(HandlerResponse(event))
        elif event["type"] == "http.response.body":
            forward = await asyncio.shield(self._decision)
            if forward is not None:
                await forward(event)
            else:
                # An application that streams without a pause must not hold up the event loop.
                await asyncio.sleep(0)
        elif event["type"].startswith("websocket.") and not self.answer.done():
            self.answer.set_exception(NativeResponse)
            await self._gone.wait()  # its answer is discarded


def http_scope(scope: Scope) -> Scope:
    """Return the `http` scope equivalent to a `websocket` scope."""
    http = dict(scope)
    http.update(
        type="http",
        method="GET",
        scheme="https" if scope.get("scheme") == "wss" else "http",
        # From 2.4 on, an application may rely on `send` raising when the client is gone; what it
        # sends here is discarded, so it has to watch `receive`.
        asgi={**scope.get("asgi", {}), "spec_version": "2.3"},
        headers=strip(request_headers(scope)),
        subprotocols=offered(scope),
        extensions={ASKING: {}},
    )
    return http


def relay_headers(answer: HandlerResponse) -> tuple[str | None, Headers]:
    """Return the subprotocol that the answer selects and the headers that travel with the 101."""
    subprotocol, headers = None, []
    for name, value in answer.headers:
        if name == b"sec-websocket-protocol":
            subprotocol = value.decode("latin-1").strip()
        elif not name.startswith((b"content-", b"sec-websocket-")) and name not in _NOT_WITH_101:
            headers.append((name, value))
    return subprotocol, headers
