"""One trace over client, front end, room, and a worker that the room starts.

    TRACES=traces.jsonl uvicorn handlers.traced:app
    wsrelay connect ws://127.0.0.1:8000/rooms/blue

Send a text: the room has its words counted by a process of their own, and answers. Each OS process
appends its spans to the file; put the exporter of your backend in the place of this one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from wsrelay import Client, Node, RelayResponse, Room, WebSocketRelay, aio, answers, process

tracer = trace.get_tracer(__name__)


def set_up(service: str) -> TracerProvider:
    """Have the spans of this OS process exported: called once in each, never before a fork."""
    path = os.environ.get("TRACES")
    exporter = ConsoleSpanExporter(
        out=open(path, "a") if path else sys.stderr,  # noqa: PTH123, SIM115 - for as long as it runs
        formatter=_line,
    )
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def _line(span: ReadableSpan) -> str:
    return f"{span.to_json(indent=None)}\n"


# In workers


class Words(Room):
    """A room that has texts counted."""

    def on_start(self) -> None:
        set_up("room")
        self.total = 0

    def on_text(self, client: Client, text: str) -> None:
        with tracer.start_as_current_span("count and answer"):
            count: int = process.exec(f"{__file__}:words_in", None, text)
            self.total += count
            client.send(f"{count} words")

    @answers
    def words(self) -> int:
        """Return how many words there have been."""
        with tracer.start_as_current_span("look up"):
            return self.total


def words_in(text: str) -> int:
    """Count words, in a process that ends with it."""
    set_up("counter")
    with tracer.start_as_current_span("count"):
        return len(text.split())


# In the front end


async def connect(request: Request) -> RelayResponse:
    """Send a client to its room."""
    room = request.path_params["room"]
    return RelayResponse(target=f"{__file__}:Words", name=f"room:{room}", end_when_empty="1m")


async def words(request: Request) -> JSONResponse:
    """Ask a room how many words there have been."""
    room = request.path_params["room"]
    with tracer.start_as_current_span(f"GET {request.url.path}"):
        return JSONResponse(await aio.process.call(f"room:{room}", "words"))


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    provider = set_up("front end")
    async with node:
        yield
    provider.shutdown()  # after the node, whose end tells the lives of its processes


node = Node()
routes = [Route("/rooms/{room}", connect), Route("/rooms/{room}/words", words)]
app = WebSocketRelay(Starlette(routes=routes, lifespan=lifespan), node=node)
