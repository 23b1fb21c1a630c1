"""Rooms that the tests run in real workers, each in both faces."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from relating import Faces, crash, error_of, give, now

from wsrelay import CallError, Client, Room, aio, answers, every, on, process
from wsrelay.aio import process as aio_process


class Written:
    """What the classes below have once they are rooms."""

    face: Any
    clients: Any
    end: Any
    broadcast: Any
    broadcast_json: Any
    start_soon: Any
    watch: Any
    sync: Any
    aio: Any


T = TypeVar("T")


def rooms(*metadata: Any) -> Callable[[T], T]:
    """Make a room for each face of a class whose hooks are `async def` and take the face.

    `name.sync` is a `wsrelay.Room`, `name.aio` a `wsrelay.aio.Room`.
    """

    def make(cls: Any) -> Any:
        made = []
        for face, base, name in ((process, Room, "sync"), (aio_process, aio.Room, "aio")):
            body = {
                key: _hook(value, base is Room) if inspect.iscoroutinefunction(value) else value
                for key, value in vars(cls).items()
                if key not in ("__dict__", "__weakref__")
            }
            body |= {"face": face, "__qualname__": f"{cls.__name__}.{name}"}
            bases: tuple[Any, ...] = (base[metadata[0]] if metadata else base,)
            made.append(types.new_class(name, bases, {}, functools.partial(_fill, body)))
        return Faces(*made)

    return make


def _fill(body: dict[str, Any], namespace: dict[str, Any]) -> None:
    namespace.update(body)


def _hook(function: Callable[..., Any], is_plain: bool) -> Callable[..., Any]:
    """Make a plain function of one that awaits only `now`."""
    if not is_plain:
        return function

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        coroutine = function(*args, **kwargs)
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("the synchronous face has waited like a coroutine")

    plain.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    del plain.__wrapped__  # `inspect` would find a coroutine function
    return plain


class Say(msgspec.Struct, tag="say"):
    text: str


class Add(msgspec.Struct, tag="add"):
    numbers: list[int]


class User(msgspec.Struct):
    name: str
    level: int = 0


@rooms()
class Diary(Written):
    """Tell in the result all that happens, in order; `end` in a text ends it."""

    async def on_start(self, *args: Any, **kwargs: Any) -> None:
        self.seen: list[Any] = [["start", list(args), kwargs, len(self.clients)]]

    async def on_join(self, client: Any) -> None:
        inside = client in self.clients and self.clients.get(str(client)) is client
        self.seen.append(["join", client.metadata, inside, len(self.clients)])
        await now(client.send("welcome"))

    async def on_leave(self, client: Any, code: int, reason: str) -> None:
        inside = client in self.clients or self.clients.get(client) is not None
        self.seen.append(["leave", code, reason, inside, len(self.clients)])

    async def on_text(self, client: Any, text: str) -> None:
        self.seen.append(["text", text])
        if text == "end":
            self.end(self.seen)
        await now(client.send(f"heard {text}"))

    async def on_binary(self, client: Any, data: bytes) -> None:
        self.seen.append(["binary", data])
        await now(client.send(data[::-1]))

    async def on_message(self, message: Any) -> None:
        self.seen.append([message.topic, message.payload])

    async def on_event(self, event: Any) -> None:
        self.seen.append([event.kind, event.result.value])

    async def on_heartbeat(self, client: Any, uptime: float, count: int) -> None:
        self.seen.append(["heartbeat", uptime > 0, count])
        await now(client.send("beat"))

    @on("spawn")
    async def spawn(self, message: Any) -> None:
        self.face.spawn_monitored(give, None, message.payload)

    @on("options")
    async def options(self, message: Any) -> None:
        self.face.set_options(**message.payload)

    async def on_stop(self, reason: str) -> None:
        self.end([*self.seen, ["stop", reason]])


@rooms()
class Troubled(Written):
    """Have a linked process that crashes, and do with a client what is not allowed."""

    async def on_start(self) -> None:
        self.seen: list[list[Any]] = []
        self.face.set_options(trap_links=True)
        self.face.spawn_linked(crash)

    async def on_join(self, client: Any) -> None:
        client.close(1005)

    async def on_event(self, event: Any) -> None:
        self.note(event.kind, event.result.error.kind)

    async def on_message(self, message: Any) -> None:
        self.note(message.topic, message.payload["topic"])

    def note(self, *what: Any) -> None:
        self.seen.append(list(what))
        if len(self.seen) == 2:
            self.end(sorted(self.seen))


@rooms()
class Talk(Written):
    """Take two kinds of JSON, and tell everybody else."""

    @on(Say)
    async def say(self, client: Any, message: Say) -> None:
        await now(self.broadcast_json({"said": message.text}, but=client))

    @on(Add)
    async def add(self, client: Any, message: Add) -> None:
        await now(client.send(str(sum(message.numbers))))
        await now(self.broadcast(b"added"))


@rooms()
class TalkOrText(Written):
    """Take JSON of one kind, and any other text."""

    @on(Say)
    async def say(self, client: Any, message: Say) -> None:
        await now(client.send(f"said {message.text}"))

    async def on_text(self, client: Any, text: str) -> None:
        await now(client.send(f"other {text}"))

    async def on_invalid(self, client: Any, error: Exception) -> None:
        await now(client.send(f"{type(error).__name__}: {error}"))


@rooms(User)
class Members(Written):
    """Know clients by metadata of a type."""

    async def on_join(self, client: Any) -> None:
        names = [[one.metadata.name, one.metadata.level] for one in self.clients]
        await now(client.send_json(names))

    async def on_text(self, client: Any, text: str) -> None:
        if text == "rename":
            await now(self.face.send(client, "ws.control", {"metadata": {"name": "bob"}}))
        elif text == "spoil":
            await now(self.face.send(client, "ws.control", {"metadata": {"name": 3}}))
        await now(client.send(client.metadata.name))

    async def on_leave(self, client: Any, code: int, reason: str) -> None:
        self.end([client.metadata.name, code, reason])


@rooms()
class Ticking(Written):
    """Count ticks: those while somebody is there, and those that come always."""

    async def on_start(self) -> None:
        self.order: list[str] = []

    async def on_join(self, client: Any) -> None:
        del client
        self.order.append("join")

    async def on_leave(self, client: Any, code: int, reason: str) -> None:
        del client, code, reason
        self.order.append("leave")

    @every(0.01)
    async def tick(self) -> None:
        self.order.append("tick")
        await now(self.broadcast("tick"))

    @every(0.015, when_empty=True)
    async def always(self) -> None:
        self.order.append("always")
        if self.order[-2:] == ["always", "always"] and "leave" in self.order:
            self.end(self.order)


@rooms()
class Busy(Written):
    """Have ticks that take longer than their interval, and messages that wait."""

    async def on_start(self) -> None:
        self.order: list[Any] = []

    @every(0.001, when_empty=True)
    async def tick(self) -> None:
        time.sleep(0.002)  # noqa: ASYNC251 - it computes
        self.order.append("tick")

    @on("number")
    async def number(self, message: Any) -> None:
        time.sleep(0.002)  # noqa: ASYNC251
        self.order.append(message.payload)
        if message.payload == 9:
            self.end(self.order)


@rooms()
class Stopping(Written):
    """Be cancelled with messages queued, and ticks due."""

    async def on_start(self, path: str) -> None:
        self.order: list[Any] = []
        while not Path(path).exists():
            time.sleep(0.005)  # noqa: ASYNC251

    @every(0.001, when_empty=True)
    async def tick(self) -> None:
        self.order.append("tick")

    @on("number")
    async def number(self, message: Any) -> None:
        time.sleep(0.005)  # noqa: ASYNC251 - ticks are due after it
        self.order.append(message.payload[0])

    async def on_stop(self, reason: str) -> None:
        self.end([self.order, reason])


@rooms()
class Curious(Written):
    """Call what a room may not."""

    async def on_start(self) -> None:
        errors = [
            await error_of(self.face.inbox),
            await error_of(self.face.events),
            await error_of(self.face.incoming),
            await error_of(self.face.listen, "topic"),
            await error_of(self.face.select),
            await error_of(self.face.ticks, 1),
        ]
        self.end(errors)


@rooms()
class Failing(Written):
    """Raise in the hook that the argument names."""

    async def on_start(self, where: str) -> None:
        self.where = where
        self.fail("on_start")

    def fail(self, where: str) -> None:
        if where == self.where:
            raise ZeroDivisionError(where)

    async def on_join(self, *_: Any) -> None:
        self.fail("on_join")

    async def on_text(self, *_: Any) -> None:
        self.fail("on_text")

    @every(0.01)
    async def tick(self) -> None:
        self.fail("tick")

    async def on_stop(self, *_: Any) -> None:
        os._exit(3)


class Streams(aio.Room):
    """Run tasks beside the hooks."""

    async def on_start(self, end: str = "") -> None:
        self.log: list[str] = []
        self.streams: dict[str, asyncio.Task[None]] = {}
        self.how = end

    async def stream(self, client: aio.Client, name: str) -> None:
        try:
            while True:
                await client.send(name)
                await asyncio.sleep(0.005)
        finally:
            self.log.append(f"{name} stopped")

    async def crash(self) -> None:
        raise ZeroDivisionError("in a task")

    async def on_text(self, client: aio.Client, text: str) -> None:
        match text.split():
            case ["stop", name]:
                self.streams[name].cancel()
                await asyncio.wait([self.streams[name]])
                await client.send("stopped")
            case ["crash"]:
                self.start_soon(self.crash())
                await asyncio.sleep(60)
            case ["end"]:
                self.start_soon(self.end_soon())
            case [name]:
                self.streams[name] = self.start_soon(self.stream(client, name))

    async def end_soon(self) -> None:
        self.end("ended by a task")

    async def on_stop(self, reason: str) -> None:
        error = await error_of(lambda: self.start_soon(self.crash()))
        self.end([*self.log, reason, error])


class Waiting(aio.Room):
    """Have hooks that wait, and more to call meanwhile."""

    async def on_start(self) -> None:
        self.order: list[Any] = []

    async def wait(self, what: Any) -> None:
        self.order.append(what)
        await asyncio.sleep(0.003)
        self.order.append(what)

    @every(0.001, when_empty=True)
    async def tick(self) -> None:
        await self.wait("tick")

    @on("number")
    async def number(self, message: aio.Message) -> None:
        await self.wait(message.payload)
        if message.payload == 4:
            self.end(self.order)


class EndsFromOutside(Room):
    """Wait for nothing, until a thread that makes calls, or a signal handler, ends it."""

    def on_start(self, how: str, other: str) -> None:
        if how == "signal":
            signal.signal(signal.SIGUSR1, lambda *_: self.end(how))
        threading.Thread(target=self.work, args=(how, other)).start()

    def work(self, how: str, other: str) -> None:
        for _ in range(3):
            process.call(other, "count")
        if how == "signal":
            os.kill(os.getpid(), signal.SIGUSR1)
        else:
            self.end(how)


class EndsFromOutsideWithTicks(EndsFromOutside):
    @every(3600, when_empty=True)
    def tick(self) -> None:
        """Be never called."""


class BesideALoop(Room[User]):
    """Have a thread whose event loop reads for all, and change metadata."""

    def on_start(self, other: str) -> None:
        reads = threading.Event()

        async def call() -> None:
            await aio_process.call(other, "count")
            reads.set()
            await asyncio.sleep(3600)

        threading.Thread(target=asyncio.run, args=(call(),), daemon=True).start()
        reads.wait()

    def on_join(self, client: Client[User]) -> None:
        client.metadata.level += 1

    def on_text(self, client: Client[User], text: str) -> None:
        client.send(f"{text} {client.metadata.level} {client in self.clients}")


class NoRoom:
    """A class that is no target."""


class PlainRoom(Room):
    def on_start(self, greeting: str) -> None:
        self.greeting = greeting

    def on_join(self, client: Client) -> None:
        client.send(self.greeting)


class AioRoom(aio.Room):
    async def on_start(self, greeting: str) -> None:
        self.greeting = greeting

    async def on_join(self, client: aio.Client) -> None:
        await client.send(self.greeting)


@rooms()
class Asked(Written):
    """Answer calls, and watch a group."""

    async def on_start(self, *groups: str) -> None:
        self.seen: list[Any] = []
        for group in groups:
            self.watch(group)

    async def on_event(self, event: Any) -> None:
        self.seen.append([event.kind, event.pid, event.meta])

    @answers
    async def count(self) -> int:
        return len(self.clients)

    @answers
    async def total(self, numbers: list[int]) -> dict[str, int]:
        return {"total": sum(numbers)}

    @answers
    async def positive(self, number: Annotated[int, msgspec.Meta(gt=0)]) -> Nowhere:  # type: ignore[name-defined]  # noqa: F821 - as if for type checkers alone
        return number

    @answers
    async def greet(self, name: str = "you") -> str:
        if name == "nobody":
            raise CallError("nobody is here")
        return f"hello {name}"

    @answers
    async def whatever(self, payload: Any) -> list[Any]:
        return [payload]

    @answers
    async def crash(self) -> None:
        raise ZeroDivisionError("on purpose")

    @answers
    async def no_data(self) -> Any:
        return object()

    @answers
    async def watched(self) -> list[Any]:
        return self.seen

    @on("noted")
    async def noted(self, message: Any) -> None:
        raise AssertionError(f"{message} is a call and not a message")


@rooms()
class Unwatching(Written):
    """Watch without a hook for it."""

    async def on_start(self) -> None:
        self.end([await error_of(self.watch, "group"), await error_of(self.face.groups.watch, "g")])


class Unresolved(Room):
    @answers
    def ask(self, payload: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
        """Be never asked."""
