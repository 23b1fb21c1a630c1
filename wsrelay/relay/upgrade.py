"""One upgrade request: ask the application, then relay, refuse, or leave it to the application."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Container
from http import HTTPStatus
from typing import Final

from msgspec.structs import replace

from wsrelay import tracing
from wsrelay.errors import HostFull, NoQuorum, RelayRefused, WsrelayError
from wsrelay.node import Arrival, Node, NoTarget
from wsrelay.session import header
from wsrelay.session.claim import MOST_REJOINS
from wsrelay.values.numbers import Refusal
from wsrelay.values.printable import escaped, printable, shortened
from wsrelay.wire.logrecord import fields

from .asgi import RETRY_AFTER, App, Event, Receive, Scope, Send, client_of, offered, response, strip
from .asgi_connection import AsgiConnection
from .connection import ClientPeer, ConnectionLimits
from .direct_connection import DIRECT, DirectConnection
from .probe import NOT_NOW, HandlerProbe, HandlerResponse, NativeResponse, relay_headers
from .rate_limited_log import RateLimitedLog
from .request_spawns import RequestSpawns

__all__ = ["Upgrade", "abandon", "deny"]

logger = logging.getLogger(__name__)

_SHOWN: Final = 5
"""The most entries that one log line names."""


class _Refused(Exception):  # noqa: N818 - reads as a sentence
    """The upgrade is answered with this status; `reason` is counted, the text is for the log."""

    def __init__(
        self, status: int, reason: Refusal, why: str, *headers: tuple[bytes, bytes]
    ) -> None:
        super().__init__(why)
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = b"%s\n" % HTTPStatus(status).phrase.encode()


def _unavailable(why: str, error: NoTarget) -> _Refused:
    if error.is_crowded:
        return _Refused(503, "busy", why, RETRY_AFTER)
    return _Refused(503, "not_alive" if error.is_over else "start_failed", why)


def _not_now(error: Exception) -> Refusal:
    """Return as what an error of `NOT_NOW` is counted."""
    if isinstance(error, HostFull):
        return "host_full"
    return "no_quorum" if isinstance(error, NoQuorum) else "start_failed"


class Upgrade:
    """The life of one `websocket` scope whose origin is allowed."""

    def __init__(
        self,
        app: App,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        node: Node,
        limits: ConnectionLimits,
        native: Container[int] | None,
        cancel_unused: bool,
        refusals: RateLimitedLog,
        unselected: Callable[[Scope], object],
    ) -> None:
        self._app = app
        self._node = node
        self._limits = limits
        self._native = native
        self._scope = scope
        self._path = printable(scope["path"])
        self._refusals = refusals
        self._unselected = unselected
        self._receive = receive
        self._send = send
        self._first: list[Event] = []
        # The next event; before the upgrade it can only be the client's disconnect.
        self._watch: asyncio.Future[Event] | None = None
        self._spawned = RequestSpawns(node, wanted=cancel_unused)

    async def run(self) -> None:
        """See the upgrade through; raises what the application raises.

        An answer without the relay's header leaves the upgrade to the application's own WebSocket
        routes if its status is one of `native`; so does the lack of an HTTP answer. With None there
        are no such routes.
        """
        self._first.append(await self._receive())
        asking = HandlerProbe(self._app, self._scope, self._spawned)
        watch = self._watch = asyncio.ensure_future(self._next(asking))
        try:
            await self._ask(asking, watch)
        finally:
            try:
                await asking.finish()
            except NOT_NOW:
                pass  # already answered with 503
            finally:
                watch.cancel()

    async def _next(self, asking: HandlerProbe) -> Event:
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            asking.client_gone()
        return event

    async def _replay(self) -> Event:
        """Act as `receive` for an application that gets the scope from the beginning."""
        return self._first.pop() if self._first else await self._resume()

    async def _resume(self) -> Event:
        """Act as `receive` from where this upgrade left off."""
        if self._watch is None:
            return await self._receive()
        event = await self._watch
        self._watch = None
        return event

    async def _ask(self, asking: HandlerProbe, watch: asyncio.Future[Event]) -> None:
        try:
            answer = await asking.started()
        except NOT_NOW as error:
            self._spawned.drop()
            await self._unavailable(error)
            return
        except NativeResponse:
            self._spawned.drop()
            await asking.stop()
            await self._serve_without_answer("it answered with a WebSocket event")
            return
        except Exception as error:
            self._spawned.drop()
            if not await self._serve_without_answer(f"it raised {error!r:.200}"):
                raise
            return
        if route := asking.route:
            tracing.note({"http.route": route}, name=f"GET {route}")
        if answer is not None and answer.relay is not None:
            asking.drop_body()
            await self._relay(asking, answer, watch)
            return
        self._spawned.drop()
        if answer is None:
            await self._serve_without_answer("it did not respond")
        elif self._native is not None and answer.status in self._native:
            await self._serve_natively(asking, answer)
        elif answer.status == 500 and (full := await asking.unavailable()) is not None:  # noqa: PLR2004
            await self._unavailable(full)
        else:
            await self._pass_on(asking, answer)

    async def _serve_natively(self, asking: HandlerProbe, answer: HandlerResponse) -> None:
        """Run the application with the original scope.

        If it closes without having accepted, which is also how frameworks say that they have no
        such route, the client gets the answer that was given over HTTP.
        """
        logger.debug("%s: left to the application: it answered %d", self._path, answer.status)
        refused: bool | None = None

        async def send(event: Event) -> None:
            nonlocal refused
            if refused is None:
                refused = event["type"] == "websocket.close"
                if refused:
                    await self._pass_on(asking, answer)
                else:
                    asking.end()
            if not refused:
                await self._send(event)

        try:
            await self._app(self._scope, self._replay, send)
        except Exception:
            if refused is None:
                await self._pass_on(asking, answer)
            raise
        if refused is None:
            await self._pass_on(asking, answer)

    async def _serve_without_answer(self, why: str) -> bool:
        """Run an application that gave no answer over HTTP with the original scope.

        Returns whether it then answered; if not, the client was sent a 500.
        """
        first: str | None = None

        async def send(event: Event) -> None:
            nonlocal first
            first = first or event["type"]
            await self._send(event)

        if self._native is not None:
            await self._app(self._scope, self._replay, send)
        if first is None:
            self._log(
                logging.ERROR, "%s: 500: the application was asked over HTTP, and %s", escaped(why)
            )
            await self._deny(500, "application", b"Internal Server Error\n")
        elif first == "websocket.close":
            self._node.numbers.refused["application"] += 1
            what = "%s: 403: the application closed, and when it was asked over HTTP, %s"
            self._log(logging.WARNING, what, escaped(why))
        return first is not None

    async def _relay(
        self, asking: HandlerProbe, answer: HandlerResponse, watch: asyncio.Future[Event]
    ) -> None:
        path, node = self._path, self._node
        subprotocol, headers = relay_headers(answer)
        relay = None
        try:
            relay = header.parse(answer.relay or b"", node.name)
            self._check(relay, subprotocol)
            if watch.done():  # the client has left: nothing is started for it
                self._gone(relay)
                return
            arrival = await self._arrive(relay)
        except RelayRefused as error:
            await self._refuse(relay, _Refused(500, "wrong_answer", str(error)))
            return
        except _Refused as refused:
            await self._refuse(relay, refused)
            return
        except BaseException:  # the request was cancelled, for example by a time limit
            self._abandon(relay)
            raise
        with arrival:
            relay = replace(relay, target_pid=arrival.pid)
            problem = node.clients.crowded(arrival.pid)
            reason: Refusal = "busy"
            if node.draining:
                reason, problem = "draining", node.engine.why_closed
            if problem is not None:
                await self._refuse(relay, _Refused(503, reason, problem, RETRY_AFTER))
                return
            if watch.done():  # the client left while its target was starting
                self._gone(relay)
                return
            if subprotocol is None:
                self._unselected(self._scope)
            peer = ClientPeer.of(self._scope, subprotocol)
            claim = self._scope.get("extensions", {}).get(DIRECT)
            kind = AsgiConnection if claim is None else DirectConnection
            connection = kind(node, relay, self._limits, peer)
        tracing.note({"wsrelay.pid": str(connection.pid), "wsrelay.target_pid": str(arrival.pid)})
        logger.debug("%s: 101: %s", path, connection.pid, extra=fields(pid=connection.pid))
        accept = {"type": "websocket.accept", "subprotocol": subprotocol, "headers": headers}
        if isinstance(connection, AsgiConnection):
            await connection.serve(accept, self._resume, self._send)
        else:
            await connection.serve(accept, self._send, claim)
            await asking.finished_or(connection.ended())

    def _check(self, relay: header.RelayHeader, subprotocol: str | None) -> None:
        """Raise `RelayRefused` if an answer is wrong in more than the form of its header."""
        if relay.target_pid is not None and self._node.is_connection(relay.target_pid):
            why = self._node.why_no_target(relay.target_pid)
            raise RelayRefused(f"X-WS-Relay: {why}")
        if subprotocol is not None and subprotocol not in offered(self._scope):
            # The offer stays out of the log: one of the subprotocols may be a token.
            raise RelayRefused(
                f"Sec-WebSocket-Protocol {subprotocol!r} was not offered by the client"
            )

    async def _arrive(self, relay: header.RelayHeader) -> Arrival:
        """Wait until the target runs; raises `_Refused`."""
        node, pid = self._node, relay.target_pid
        if relay.spec is not None:
            return await self._start(relay.spec)
        assert pid is not None  # noqa: S101 - a header has one of the two
        try:
            return await node.arrive(pid)
        except HostFull as error:
            raise _Refused(503, "host_full", str(error), RETRY_AFTER) from None
        except NoTarget as error:
            if error.is_missing and error.result is None:  # a connection of another node
                raise _Refused(500, "wrong_answer", f"X-WS-Relay: {error}") from None
            raise _unavailable(str(error), error) from None

    async def _start(self, spec: header.TargetSpec) -> Arrival:
        """Start the header's target, or find it by its name; raises `_Refused`."""
        node, target = self._node, shortened(spec.target)
        if node.draining:
            raise _Refused(503, "draining", node.engine.why_closed)
        tries = MOST_REJOINS
        while True:
            try:
                return await node.find_target(spec)
            except NOT_NOW as error:
                raise _Refused(503, _not_now(error), str(error), RETRY_AFTER) from None
            except NoTarget as error:
                if error.is_missing:
                    more = _entries(node)
                    what = f"X-WS-Relay: target {target!r}: {error}{more}"
                    raise _Refused(500, "wrong_answer", what) from None
                if spec.name is None or not error.is_over or not tries:
                    raise _unavailable(f"target {target!r}: {error}", error) from None
                tries -= 1
            except (WsrelayError, ValueError) as error:
                raise _Refused(500, "wrong_answer", f"X-WS-Relay: {error}") from None

    async def _refuse(self, relay: header.RelayHeader | None, refused: _Refused) -> None:
        level = logging.ERROR if refused.status == 500 else logging.WARNING  # noqa: PLR2004
        self._log(level, "%s: %d: %s", refused.status, shortened(str(refused)))
        await self._deny(refused.status, refused.reason, refused.body, *refused.headers)
        self._abandon(relay)

    def _gone(self, relay: header.RelayHeader) -> None:
        """Note that the client has left before its upgrade."""
        self._node.numbers.refused["client_gone"] += 1
        self._abandon(relay)

    def _abandon(self, relay: header.RelayHeader | None) -> None:
        if relay is not None:
            abandon(self._node, relay)
        self._spawned.drop()

    def _log(self, level: int, text: str, *arguments: object) -> None:
        """Log what is refused, beginning with the path."""
        client, now = client_of(self._scope), time.monotonic()
        self._refusals.log(level, now, text, self._path, *arguments, client=client)

    async def _unavailable(self, error: Exception) -> None:
        self._log(logging.WARNING, "%s: 503: %s", shortened(str(error)))
        await self._deny(503, _not_now(error), b"Service Unavailable\n", RETRY_AFTER)

    async def _deny(
        self, status: int, reason: Refusal, body: bytes, *headers: tuple[bytes, bytes]
    ) -> None:
        self._node.numbers.refused[reason] += 1
        await deny(self._scope, self._send, status, body, *headers)

    async def _pass_on(self, asking: HandlerProbe, answer: HandlerResponse) -> None:
        """Give the client the application's own response."""
        logger.debug("%s: %d: the application's answer", self._path, answer.status)
        if not _can_respond(self._scope):
            what = (
                "%s: the application's %d becomes 403: the server lacks the extension "
                "websocket.http.response"
            )
            self._log(logging.WARNING, what, answer.status)
            await self._deny(403, "application", b"")
            return
        self._node.numbers.refused["application"] += 1
        start = {
            "type": "websocket.http.response.start",
            "status": answer.status,
            "headers": strip(answer.headers),
        }
        try:
            await self._send(start)
        except OSError:
            return  # the client is gone
        await asking.pass_body(self._forward)

    async def _forward(self, event: Event) -> None:
        try:
            await self._send({"body": b"", **event, "type": "websocket.http.response.body"})
        except OSError:
            pass  # the client is gone


def _can_respond(scope: Scope) -> bool:
    return "websocket.http.response" in (scope.get("extensions") or ())


async def deny(
    scope: Scope, send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]
) -> None:
    """Answer an upgrade with a small response; a server that cannot send one sends 403 instead."""
    try:
        if _can_respond(scope):
            for event in response(status, body, *headers):
                await send({**event, "type": f"websocket.http.response.{event['type']}"})
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
    except OSError:
        pass  # the client is gone


def abandon(node: Node, relay: header.RelayHeader) -> None:
    """Cancel the target of an upgrade that fails, if the target exists for that client alone."""
    pid = relay.target_pid  # None: it has not been started
    if relay.cancel_on_leave and pid is not None and not node.is_connection(pid):
        node.cancel(pid, "the upgrade did not come about")


def _entries(node: Node) -> str:
    """Return which entries there are, for who has mistyped one."""
    names = sorted(node.entries)
    more = ", ..." if len(names) > _SHOWN else ""
    return f"; this node has the entries {', '.join(names[:_SHOWN])}{more}" if names else ""
