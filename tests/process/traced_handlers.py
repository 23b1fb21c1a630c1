"""Handlers with spans of their own, which they append to a file."""

from __future__ import annotations

import os
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from wsrelay import Client, Message, Room, aio, answers, on, process, tracing
from wsrelay.aio import process as aio_process

tracer = trace.get_tracer(__name__)


def set_up(path: str) -> None:
    exporter = ConsoleSpanExporter(
        out=open(path, "a"),  # noqa: PTH123, SIM115 - as long as the process lives
        formatter=lambda span: f"{span.to_json(indent=None)}\n",
    )
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def span(name: str) -> Any:
    return tracer.start_as_current_span(name)


# Functions


def begin(path: str) -> None:
    """Have one span, and return."""
    set_up(path)
    with span("work"):
        pass


def crash(path: str) -> None:
    set_up(path)
    raise ZeroDivisionError("on purpose")


def leave(_path: str) -> None:
    os._exit(3)


def receive(path: str, count: int = 1) -> None:
    """Handle messages, each in a span."""
    set_up(path)
    for _ in range(count):
        message = process.inbox().receive()
        with tracing.use(message), span(f"got {message.topic}"):
            pass


def receive_plainly(path: str) -> None:
    """Handle a message without a word about traces."""
    set_up(path)
    message = process.inbox().receive()
    with span(f"got {message.topic}"):
        pass


def pass_on(path: str, to: str, how: str) -> None:
    """Send on what has come, in its context."""
    set_up(path)
    message = process.inbox().receive()
    with tracing.use(message), span("pass on"):
        match how:
            case "send":
                process.send(to, "note", message.payload)
            case "send to many":
                process.send([to, "nobody"], "note", message.payload)
            case "send_after":
                process.send_after(0.001, to, "note", message.payload)
            case "broadcast":
                process.groups.join("listeners", to)
                process.groups.broadcast("listeners", "note", message.payload)
            case "large":
                process.send(to, "note", bytes(200_000))
    process.inbox().receive()


async def aio_pass_on(path: str, to: str, how: str) -> None:
    set_up(path)
    message = await aio_process.inbox().receive()
    with tracing.use(message), span("pass on"):
        match how:
            case "send":
                await aio_process.send(to, "note", message.payload)
            case "send to many":
                await aio_process.send([to, "nobody"], "note", message.payload)
            case "send_after":
                await aio_process.send_after(0.001, to, "note", message.payload)
            case "broadcast":
                aio_process.groups.join("listeners", to)
                await aio_process.groups.broadcast("listeners", "note", message.payload)
            case "large":
                await aio_process.send(to, "note", bytes(200_000))
    await aio_process.inbox().receive()


def answer(path: str) -> None:
    """Answer calls by what they ask for."""
    set_up(path)
    later: list[Message] = []
    for message in process.inbox():
        with tracing.use(message):
            match message.topic:
                case "double":
                    with span("compute"):
                        message.reply(2 * message.payload)
                case "refuse":
                    message.refuse("not today")
                case "later":
                    later.append(message)
                case "now":
                    for one in later:
                        one.reply("at last")
                case "raise":
                    raise ZeroDivisionError("while answering")


def ask(path: str, to: str, topic: str, content: Any) -> Any:
    set_up(path)
    with span("ask"):
        return process.call(to, topic, content)


async def aio_ask(path: str, to: str, topic: str, content: Any) -> Any:
    set_up(path)
    with span("ask"):
        return await aio_process.call(to, topic, content)


def start(path: str, how: str, *args: Any) -> Any:
    """Start a process inside a span."""
    set_up(path)
    with span("start"):
        match how:
            case "spawn":
                process.spawn_monitored(begin, None, path)
                process.events().receive()
            case "get_or_spawn":
                process.get_or_spawn("its name", begin, None, path)
            case "exec":
                process.exec(begin, None, path)
            case "elsewhere":
                target, place = args
                process.spawn_monitored(target, place, path)
                process.events().receive()


def late(path: str) -> None:
    """Configure OpenTelemetry, but join the trace by hand."""
    set_up(path)
    with span("outside"):
        pass
    with tracing.use(), span("inside"):
        pass


def tell(path: str) -> list[str]:
    """Return what is known of the current span without a provider."""
    del path
    its = trace.get_current_span().get_span_context()
    return [f"{its.trace_id:032x}", f"{its.span_id:016x}"]


# Rooms


class Hall(Room):
    def on_start(self, path: str) -> None:
        set_up(path)
        with span("starts"):
            pass

    def on_join(self, client: Client) -> None:
        with span("join"):
            client.send("welcome")

    def on_text(self, client: Client, text: str) -> None:
        with span(f"text {text}"):
            client.send(text)

    def on_binary(self, client: Client, data: bytes) -> None:
        with span("binary"):
            process.send(client, "news", data.decode())  # JSON for the client

    @on("note")
    def note(self, message: Message) -> None:
        with span("note"):
            self.broadcast(str(message.payload))

    @answers
    def double(self, number: int) -> int:
        with span("compute"):
            return 2 * number


class AioHall(aio.Room):
    async def on_start(self, path: str) -> None:
        set_up(path)
        with span("starts"):
            pass

    async def on_join(self, client: aio.Client) -> None:
        with span("join"):
            await client.send("welcome")

    async def on_text(self, client: aio.Client, text: str) -> None:
        with span(f"text {text}"):
            await client.send(text)

    async def on_binary(self, client: aio.Client, data: bytes) -> None:
        with span("binary"):
            await aio_process.send(client, "news", data.decode())

    @on("note")
    async def note(self, message: aio.Message) -> None:
        async def beside() -> None:
            with span("note"):
                await self.broadcast(str(message.payload))

        self.start_soon(beside())

    @answers
    async def double(self, number: int) -> int:
        with span("compute"):
            return 2 * number
