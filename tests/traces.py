"""Spans of the test's process and of workers, in one list."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from msgspec import Struct
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
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

    def all(self) -> list[Span]:
        told = self.path.read_text() if self.path.exists() else ""
        lines = told.rpartition("\n")[0].splitlines()
        found = [_of_line(json.loads(line)) for line in lines]
        return found + [_of_line(json.loads(one.to_json())) for one in self.here.get_finished_spans()]

    def named(self, name: str) -> list[Span]:
        return [span for span in self.all() if span.name == name]

    async def one(self, name: str) -> Span:
        """Wait for the only span of that name."""
        await until(lambda: self.named(name), f"a span {name!r} among {self.all()}")
        [found] = self.named(name)
        return found


def _of_line(told: dict[str, Any]) -> Span:
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


def current() -> tuple[str, str]:
    """The ids of the current span, as `Span` has them."""
    its = trace.get_current_span().get_span_context()
    return f"{its.trace_id:032x}", f"{its.span_id:016x}"


def line(span: ReadableSpan) -> str:
    """A span as a line of a file."""
    return f"{span.to_json(indent=None)}\n"
