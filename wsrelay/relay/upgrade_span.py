"""The span of an upgrade, by the semantic conventions for HTTP servers."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from opentelemetry import context
from opentelemetry.trace import SpanKind, StatusCode, get_current_span, set_span_in_context

from wsrelay import tracing
from wsrelay.values.trace_context import parse

from .asgi import Event, Scope, Send, values

__all__ = ["UpgradeSpan"]

_STATUS = "http.response.status_code"


class UpgradeSpan:
    """The current span while it is entered; it ends with the answer.

    Its parent is the span that is current already, of a middleware further out, or else what the
    request's `traceparent` says. The application is asked with `scope`, whose headers say that it
    is asked by this span; `send` notices the answer.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        incoming = _header(scope, b"traceparent")
        around = get_current_span()
        parent = context.get_current()
        if not around.get_span_context().is_valid:
            parent = tracing.parent(parse(incoming, _header(scope, b"tracestate")))
        self._span = tracing.tracer().start_span("GET", parent, SpanKind.SERVER, _about(scope))
        trace = tracing.text_of(self._span)
        traceparent, _, tracestate = trace.partition(" ")
        told = [(b"traceparent", traceparent.encode()), (b"tracestate", tracestate.encode())]
        others = [(k, v) for k, v in scope["headers"] if bytes(k).lower() not in dict(told)]
        self.scope = {**scope, "headers": [*others, *(pair for pair in told if pair[1])]}

    async def send(self, event: Event) -> None:
        """Do what the server's `send` does."""
        if self._span.is_recording():
            match event["type"]:
                case "websocket.accept":
                    self._answered(101)
                case "websocket.http.response.start":
                    self._answered(event["status"])
                case "websocket.close":
                    self._answered(403)
        await self._send(event)

    def _answered(self, status: int) -> None:
        span = self._span
        span.set_attribute(_STATUS, status)
        if status >= 500:  # noqa: PLR2004
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", str(status))
        span.end()

    def __enter__(self) -> Self:
        self._token = context.attach(set_span_in_context(self._span))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        context.detach(self._token)
        if self._span.is_recording():  # nobody has answered
            if isinstance(error, Exception):
                self._span.record_exception(error)
                self._span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}")
            self._span.end()


def _about(scope: Scope) -> dict[str, str | int]:
    """Return what is known of a request; not its query, which may hold a token."""
    about: dict[str, str | int] = {
        "http.request.method": "GET",
        "url.scheme": scope.get("scheme", "ws"),
        "url.path": scope["path"],
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    host = _header(scope, b"host")
    if host:
        name, colon, port = host.rpartition(":")
        is_port = bool(colon) and port.isdecimal()
        about["server.address"] = name if is_port else host
        if is_port:
            about["server.port"] = int(port)
    if client := scope.get("client"):
        about["client.address"] = str(client[0])
    if agent := _header(scope, b"user-agent"):
        about["user_agent.original"] = agent
    return about


def _header(scope: Scope, name: bytes) -> str:
    return b",".join(values(scope, name)).decode("latin-1")
