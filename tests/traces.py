"""Spans of the test's process and of workers, in one list."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import traced_handlers
from msgspec import Struct
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support import until

CLIENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
"""The trace and the span of a client that is not in this process."""

TRACEPARENT = f"00-{CLIENT[0]}-{CLIENT[1]}-01"


class Span(Struct, frozen=True):
    name: str
    trace: str
    id: str
    parent: str | None
    kind: str
    status: str
    about: dict[str, Any]
    events: tuple[str, ...] = ()
    state: str = ""

    def is_child_of(self, other: Span) -> bool:
        return (self.trace, self.parent) == (other.trace, other.id)


class Spans:
    """Those of this process are in memory, those of workers in a file, a line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.here = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.here))

    def all(self) -> list[Span]:
        told = self.path.read_text() if self.path.exists() else ""
        lines = told.rpartition("\n")[0].splitlines()
        found = [of_line(json.loads(line)) for line in lines]
        return found + [
            of_line(json.loads(one.to_json())) for one in self.here.get_finished_spans()
        ]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.all() if span.name == name]

    async def one(self, name: str) -> Span:
        """Wait for the only span of that name."""
        await until(lambda: self.named(name), f"a span {name!r} among {self.all()}")
        [found] = self.named(name)
        return found


def of_line(told: dict[str, Any]) -> Span:
    context, parent = told["context"], told["parent_id"]
    return Span(
        told["name"],
        context["trace_id"].removeprefix("0x"),
        context["span_id"].removeprefix("0x"),
        parent and parent.removeprefix("0x"),
        told["kind"].removeprefix("SpanKind."),
        told["status"]["status_code"],
        told["attributes"],
        tuple(event["name"] for event in told["events"]),
        re.sub(r"'{key=(.*?), value=(.*?)}'", r"\1=\2", context["trace_state"].strip("[]")),
    )


def traced(handler: Any) -> str:
    """The target of one of the handlers in traced_handlers.py."""
    return f"{traced_handlers.__file__}:{handler.__name__}"


def outside() -> Any:
    """A span of a node's own application."""
    return trace.get_tracer("test").start_as_current_span("outside")
