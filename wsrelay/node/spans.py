"""The spans of a process: that of its start, and that of its life."""

from __future__ import annotations

from opentelemetry.trace import SpanKind, StatusCode

from wsrelay import tracing
from wsrelay.values.message import ExitError, ExitKind
from wsrelay.values.pid import PID
from wsrelay.values.printable import shortened
from wsrelay.values.trace_context import put, split

__all__ = ["ProcessSpans"]

_ASKED_FOR = (ExitKind.CANCELLED, ExitKind.TERMINATED)
"""Kinds of ends that are no failure of the process."""


class ProcessSpans:
    """Two spans, from the moment when it was asked for.

    That of the start ends when the handler is about to be called, and belongs to the trace of who
    asked. Its child is the life, which ends with the process. What the handler does belongs to it.
    """

    __slots__ = ("_life", "_start", "code")

    def __init__(self, pid: PID, target: str, code: bytes) -> None:
        trace, order = split(code)
        tracer = tracing.tracer()
        name = shortened(target)
        attributes = {"wsrelay.pid": str(pid), "wsrelay.target": name, "wsrelay.host": pid.host}
        # Never what is current here: what reads a worker's pipe runs in any context.
        self._start = tracer.start_span(
            f"spawn {name}", tracing.parent(trace), SpanKind.INTERNAL, attributes
        )
        self._life = tracer.start_span(
            f"process {name}",
            tracing.parent(tracing.text_of(self._start)),
            SpanKind.INTERNAL,
            attributes,
        )
        self.code = put(order, tracing.text_of(self._life) or trace)
        """What the worker gets: the code with the context of its life."""

    @property
    def ids(self) -> dict[str, str]:
        """The ids of its life, as `tracing.ids` returns them."""
        return tracing.ids(self._life)

    def started(self) -> None:
        """End the span of the start: its handler is about to be called."""
        self._start.end()

    def ended(self, error: ExitError | None) -> None:
        """End both: it has ended, or will not start."""
        life = self._life
        if error is not None:
            life.set_attribute("wsrelay.exit.kind", error.kind.value)
            if error.kind not in _ASKED_FOR:
                problem = shortened(error.message)
                for span in (self._start, life):
                    if span.is_recording():
                        span.set_status(StatusCode.ERROR, problem)
                if error.traceback:
                    about = {
                        "exception.type": error.message.partition(":")[0],
                        "exception.message": error.message.partition(": ")[2],
                        "exception.stacktrace": error.traceback,
                    }
                    life.add_event("exception", about)
        else:
            life.set_attribute("wsrelay.exit.kind", "normal")
        if self._start.is_recording():
            self._start.end()
        life.end()
