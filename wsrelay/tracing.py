"""Traces with OpenTelemetry: `from wsrelay import tracing`.

    for message in process.inbox():
        with tracing.use(message):
            ...  # spans that begin here belong to the trace of the message

A process takes part once it has configured a provider (`opentelemetry.trace.set_tracer_provider`).
Until then nothing here does anything, and OpenTelemetry is not imported: only what the
application has imported itself is looked at. [docs/tracing.md]

What a context is on its way is in `values/trace_context.py`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import Token
from sys import modules
from typing import TYPE_CHECKING, Any, Final

from .values import trace_context
from .values.message import Message
from .values.trace_context import trace_of

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, SpanContext, Tracer, TracerProvider

__all__ = ["use"]

OTEL: Final = "opentelemetry.trace"
"""The module without which there are no spans: nobody has begun one while it is not loaded."""

_PATIENCE: Final = 2.0
"""Seconds that exporters have to send what they hold when a worker ends."""

_NOTHING: Final = contextlib.nullcontext()

_tracer: tuple[TracerProvider, Tracer] | None = None

_began = ""
"""The context that this process was started in."""


# For handlers


def use(message: Message | None = None) -> AbstractContextManager[None]:
    """Handle a message in the context that it was sent in: that of its sender's current span.

    For a client's message that is the span of its upgrade. Rooms do this by themselves. A message
    of `process.call` also gets a span of its own, up to `reply` or `refuse`. One that was sent
    outside of a trace leaves things as they are.

    Without a message it is the context that this process was started in, for handlers that
    configure OpenTelemetry only when they run.
    """
    if OTEL not in modules:
        return _NOTHING
    if message is None:
        return attached(_began)
    if message.wants_reply and is_on():
        return _answering(message)
    return attached(trace_of(message))


# For wsrelay itself


def is_on() -> bool:
    """Whether this OS process has configured a provider."""
    otel: Any = modules.get(OTEL)
    return otel is not None and not isinstance(otel.get_tracer_provider(), otel.ProxyTracerProvider)


def tracer() -> Tracer:
    """Return the tracer of wsrelay's own spans."""
    global _tracer  # noqa: PLW0603 - making one takes ten times as long as its spans
    from importlib import metadata  # noqa: PLC0415 - only who has configured a provider needs it

    from opentelemetry import trace  # noqa: PLC0415

    provider = trace.get_tracer_provider()
    if _tracer is None or _tracer[0] is not provider:
        _tracer = provider, provider.get_tracer("wsrelay", metadata.version("wsrelay"))
    return _tracer[1]


def here() -> str:
    """Return the context of the current span; empty without one."""
    otel: Any = modules.get(OTEL)
    if otel is None or (span := otel.get_current_span()) is otel.INVALID_SPAN:
        return ""
    return text_of(span)


def text_of(span: Span) -> str:
    """Return the context of a span; empty for one that is none."""
    its: SpanContext = span.get_span_context()
    if not its.is_valid:
        return ""
    parent = f"00-{its.trace_id:032x}-{its.span_id:016x}-{its.trace_flags:02x}"
    return f"{parent} {state}" if (state := its.trace_state.to_header()) else parent


def carried(data: bytes) -> bytes:
    """Return a payload or code with the context of the current span in front."""
    return trace_context.put(data, here())


def parent(trace: str) -> Context:
    """Return a context as OpenTelemetry has it, with nothing of what is current here."""
    from opentelemetry.context import Context  # noqa: PLC0415 - as above
    from opentelemetry.trace import set_span_in_context  # noqa: PLC0415

    return set_span_in_context(_remote(trace), Context()) if trace else Context()


def _remote(trace: str) -> Span:
    from opentelemetry.trace import (  # noqa: PLC0415 - as above
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        TraceState,
    )

    traceparent, _, state = trace.partition(" ")
    _, trace_id, span_id, flags = traceparent.split("-")
    return NonRecordingSpan(
        SpanContext(
            int(trace_id, 16),
            int(span_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(int(flags, 16)),
            trace_state=TraceState.from_header([state]) if state else None,
        )
    )


def attached(trace: str) -> AbstractContextManager[None]:
    """Make a context the current one, while this is entered; an empty one changes nothing."""
    return _attached(trace) if trace else _NOTHING


@contextlib.contextmanager
def _attached(trace: str) -> Iterator[None]:
    from opentelemetry.context import detach  # noqa: PLC0415 - as above

    token = _attach(trace)
    try:
        yield
    finally:
        detach(token)


def _attach(trace: str) -> Token[Context]:
    from opentelemetry.context import attach  # noqa: PLC0415 - as above
    from opentelemetry.trace import set_span_in_context  # noqa: PLC0415

    return attach(set_span_in_context(_remote(trace)))


def begin(trace: str) -> None:
    """Note the context that this worker was started in, and enter it for good."""
    global _began  # noqa: PLW0603 - a process is started once
    _began = trace
    if OTEL in modules and trace:
        _attach(trace)


def calling(to: str, topic: str) -> AbstractContextManager[object]:
    """Have a span around a call; without a provider it is nothing."""
    if not is_on():
        return _NOTHING
    from opentelemetry.trace import SpanKind  # noqa: PLC0415 - as above

    return tracer().start_as_current_span(
        f"call {topic}",
        kind=SpanKind.CLIENT,
        attributes={"rpc.system.name": "wsrelay", "rpc.method": topic, "wsrelay.to": str(to)},
    )


@contextlib.contextmanager
def _answering(message: Message) -> Iterator[None]:
    """Have a span around the handling of a call, which ends with the answer.

    If that is not given in here, it is once it is given.
    """
    from opentelemetry.trace import SpanKind, StatusCode, use_span  # noqa: PLC0415 - as above

    topic, attributes = message.topic, {"rpc.system.name": "wsrelay", "rpc.method": message.topic}
    attributes["wsrelay.from"] = str(message.sender)
    span = tracer().start_span(
        f"answer {topic}",
        parent(trace_of(message)),
        kind=SpanKind.SERVER,
        attributes=attributes,
    )

    def answered(refused: str | None) -> None:
        if refused is not None:
            span.set_status(StatusCode.ERROR, refused)
        span.end()

    message.__dict__["answered"] = answered
    try:
        with use_span(span):
            yield
    except BaseException:
        message.__dict__.pop("answered", None)
        span.end()
        raise


def note(attributes: dict[str, str], *, name: str = "") -> None:
    """Give the current span, if there is one, more attributes and another name."""
    otel: Any = modules.get(OTEL)
    if otel is not None:
        span: Span = otel.get_current_span()
        span.set_attributes(attributes)
        if name:
            span.update_name(name)


def ids(span: Span | None = None) -> dict[str, str]:
    """Return `trace_id` and `span_id` of a span, or of the current one, as log records have them.

    Both are in hexadecimal digits; it is empty without a span.
    """
    otel: Any = modules.get(OTEL)
    if otel is None:
        return {}
    its: SpanContext = (otel.get_current_span() if span is None else span).get_span_context()
    if not its.is_valid:
        return {}
    return {"trace_id": f"{its.trace_id:032x}", "span_id": f"{its.span_id:016x}"}


def flush() -> None:
    """Have exporters send what they hold: they would at the interpreter's exit."""
    if not is_on():
        return
    provider: Any = modules[OTEL].get_tracer_provider()
    if (force_flush := getattr(provider, "force_flush", None)) is not None:
        # Its own timeout is not kept by all of them.
        sending = threading.Thread(target=force_flush, daemon=True)
        sending.start()
        sending.join(_PATIENCE)
