"""`WebSocketRelay`: plain ASGI middleware."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from types import SimpleNamespace
from typing import Final

from wsrelay.node import Node
from wsrelay.session import handshake
from wsrelay.session.origins import Origins
from wsrelay.session.outbox import Overflow
from wsrelay.values import current
from wsrelay.values.bounds import MOST, Bounds, InvalidOptions, wrong
from wsrelay.values.printable import printable, shortened

from .asgi import (
    RETRY_AFTER,
    SELECTS,
    App,
    Event,
    Receive,
    Scope,
    Send,
    client_of,
    offered,
    strip,
    values,
)
from .connection import ConnectionLimits
from .http_response import HTTPResponse
from .probe import ASKING, NOT_NOW
from .rate_limited_log import RateLimitedLog
from .request_spawns import RequestSpawns
from .upgrade import Upgrade, deny

__all__ = ["WebSocketRelay"]

logger = logging.getLogger(__name__)


_BOUNDS: Final = {
    "outbox_limit": Bounds(1, MOST, "1 byte or more", whole=True),
    "linger": Bounds(0, MOST, "0 seconds or more"),
}


class WebSocketRelay:
    """Upgrades where the application answers with `X-WS-Relay`, and relays to that target.

    `node`: the node to use; with None the middleware has one of its own, which starts and ends with
    the application. `allowed_origins` as in `Origins`. `outbox_limit` is in bytes,
    `outbox_overflow` is one of `close`, `pause` and `drop`, `linger` is in seconds. Under `pause` a
    client is still closed at twice the limit, which only senders that are not workers can reach.
    Creating the middleware starts nothing. It raises `InvalidOptions`, a `ValueError`, for invalid
    options.

    `native`: an upgrade that the application answers without the header and with one of
    `native_statuses` (None: 2xx, 404 and 405), with an event of a `websocket` scope, or not at all,
    is left to the application's own WebSocket routes: the application is run again with the
    original scope. If it closes without accepting, the client gets the first answer. `never_ask`
    lists paths that, with everything below them, belong to the application: it is not asked first,
    and the origin is not checked.
    `cancel_unused`: what a request spawns is cancelled when its answer is not an upgrade, unless it
    has a client or somebody else has found it by name.
    """

    def __init__(
        self,
        app: App,
        *,
        node: Node | None = None,
        allowed_origins: str = "",
        outbox_limit: int = 4 * 1024 * 1024,
        outbox_overflow: str = "close",
        linger: float = 2.0,
        native: bool = True,
        native_statuses: Collection[int] | None = None,
        never_ask: Collection[str] = (),
        cancel_unused: bool = False,
    ) -> None:
        self._app = app
        self._given = node
        self._native = _statuses(native_statuses) if native else None
        self._never_ask = _paths(never_ask)
        self._cancel_unused = cancel_unused
        self._own: Node | None = None
        self._refusals = RateLimitedLog(logger)
        self._warned_of_none = False
        problems = []
        try:
            self._origins = Origins(allowed_origins)
        except ValueError as error:
            problems.append(("allowed_origins", str(error)))
        if outbox_overflow not in list(Overflow):
            known = ", ".join(Overflow)
            problem = f"is {outbox_overflow!r:.60} and must be one of {known}"
            problems.append(("outbox_overflow", problem))
        given = {"outbox_limit": outbox_limit, "linger": linger}
        if problems := [*problems, *wrong(SimpleNamespace(**given), _BOUNDS)]:
            raise InvalidOptions(problems)
        self._limits = ConnectionLimits(outbox_limit, Overflow(outbox_overflow), linger)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if ASKING in (scope.get("extensions") or ()):
            await self._app(scope, receive, send)  # an outer relay is already asking
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            node = self._node()
            token = current.node_of_request.set(node)
            try:
                if scope["type"] == "websocket":
                    await self._websocket(node, scope, receive, send)
                else:
                    await self._http(node, scope, receive, send)
            finally:
                current.node_of_request.reset(token)

    # The node's life

    def _node(self) -> Node:
        """Return the node, started."""
        node = self._given or self._own
        if node is None:
            around = current.node_of_request.get(None)
            if isinstance(around, Node):
                return around
            node = self._own = Node()
        if not node.running:
            node.start()
        return node

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        mine = self._given is None or not self._given.running

        async def receive_and_start() -> Event:
            event = await receive()
            if event["type"] == "lifespan.startup":
                node = self._node()
                node.serves(scope.get("app", self._app))
                current.node_of_request.set(node)
            return event

        async def close_and_send(event: Event) -> None:
            over = event["type"] in (
                "lifespan.startup.failed",
                "lifespan.shutdown.complete",
                "lifespan.shutdown.failed",
            )
            if over and mine and (node := self._given or self._own) is not None:
                await node.aclose()
            await send(event)

        await self._app(scope, receive_and_start, close_and_send)

    # Plain HTTP

    async def _http(self, node: Node, scope: Scope, receive: Receive, send: Send) -> None:
        spawned = RequestSpawns(node, wanted=self._cancel_unused)
        plain = HTTPResponse(node, send, spawned)
        scope = {**scope, "headers": list(scope["headers"])}  # ASGI allows any iterable
        if handshake.asks(scope["headers"]) and not await self._may_ask(node, scope, plain):
            return
        clean = {**scope, "headers": strip(scope["headers"])}
        spawned.watch()
        try:
            await self._app(clean, receive, plain.send)
        except NOT_NOW as error:
            if plain.started:
                raise
            self._refuse(scope, "%s: 503: %s", shortened(str(error)))
            await plain.unavailable()
        finally:
            if not plain.started:
                spawned.drop()
            await plain.release()

    async def _may_ask(self, node: Node, scope: Scope, plain: HTTPResponse) -> bool:
        """Refuse a request for a WebSocket that the server did not treat as an upgrade.

        The application would answer it as one and spawn a process for it.
        """
        version = scope.get("http_version", "1.1")
        problem = handshake.problem(scope["method"], version, scope["headers"])
        if problem is not None:
            node.numbers.refused["handshake"] += 1
            self._refuse(scope, "%s: %d: %s", problem.status, printable(problem.reason))
            await plain.refuse(problem.status, f"Not a WebSocket upgrade: {problem.reason}\n")
        elif not self._origin_allowed(scope):
            node.numbers.refused["origin"] += 1
            await plain.refuse(403, "Forbidden: origin not allowed\n")
        else:
            return True
        return False

    # Upgrades

    async def _websocket(self, node: Node, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_never_asked(scope):
            await self._app(scope, receive, send)
            return
        scope = {**scope, "headers": list(scope["headers"])}  # ASGI allows any iterable
        node.start()  # raises if the node runs in another event loop than this connection
        if not self._origin_allowed(scope):
            node.numbers.refused["origin"] += 1
            await deny(scope, send, 403, b"Forbidden: origin not allowed\n")
            return
        if node.buffered.is_full:
            node.numbers.refused["max_buffered"] += 1
            self._refuse(
                scope,
                "%s: 503: this node holds %d bytes of unfinished client data (max_buffered)",
                node.buffered.size,
            )
            await deny(scope, send, 503, b"Service Unavailable\n", RETRY_AFTER)
            return
        upgrade = Upgrade(
            self._app,
            scope,
            receive,
            send,
            node=node,
            limits=self._limits,
            native=self._native,
            cancel_unused=self._cancel_unused,
            refusals=self._refusals,
            unselected=self._none_selected,
        )
        await upgrade.run()

    def _is_never_asked(self, scope: Scope) -> bool:
        path, root = scope["path"], scope.get("root_path", "")
        if root and path.startswith(f"{root}/"):
            path = path.removeprefix(root)
        return any(path == own or path.startswith(f"{own}/") for own in self._never_ask)

    def _origin_allowed(self, scope: Scope) -> bool:
        origins, hosts = values(scope, b"origin"), values(scope, b"host")
        origin = b", ".join(origins).decode("latin-1") if origins else None
        host = hosts[0].decode("latin-1") if hosts else None
        if self._origins.allow(origin, host):
            return True
        self._refuse(
            scope,
            "%s: 403: Origin '%s' is not that of Host '%s' and not among the allowed origins "
            "(WebSocketRelay's allowed_origins, --origins); the client is %s",
            printable(origin or ""),
            printable(host or ""),
            client_of(scope),
        )
        return False

    def _none_selected(self, scope: Scope) -> None:
        """Warn once that a client offers subprotocols and none is selected."""
        selects = SELECTS in (scope.get("extensions") or ())
        if self._warned_of_none or selects or not offered(scope):
            return
        self._warned_of_none = True
        logger.warning(
            "%s: none of the subprotocols that the client offers is selected, so browsers close "
            "the connection: use RelayResponse(subprotocol=...) or --subprotocol (logged once)",
            printable(scope["path"]),
        )

    def _refuse(self, scope: Scope, text: str, *arguments: object) -> None:
        """Log what is refused, beginning with the path."""
        path, client = printable(scope["path"]), client_of(scope)
        self._refusals.warning(time.monotonic(), text, path, *arguments, client=client)


def _statuses(given: Collection[int] | None) -> frozenset[int]:
    if given is None:
        return frozenset((*range(200, 300), 404, 405))
    if wrong := [status for status in given if status not in range(200, 600)]:
        raise ValueError(f"native_statuses {wrong!r}: a final HTTP status is 200 to 599")
    return frozenset(given)


def _paths(given: Collection[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise ValueError(f"never_ask is {given!r} and must be a list of paths")  # noqa: TRY004
    if wrong := [path for path in given if not path.startswith("/")]:
        raise ValueError(f"never_ask {wrong!r}: a path starts with /")
    return tuple(path.rstrip("/") for path in given)
