"""What handlers that relate to others share; each returns what it saw.

The handlers stand beside their tests. `both` makes two of one: `name.sync` runs it with
`wsrelay.process` and without an event loop, `name.aio` with `wsrelay.aio.process`. What the two
return must be the same.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from wsrelay import Event, process
from wsrelay.aio import process as aio_process

WAIT = 20.0


class Faces:
    """A handler for both faces: `sync` runs without an event loop, `aio` in one."""

    def __init__(self, sync: Callable[..., Any], aio: Callable[..., Any]) -> None:
        self.sync = sync
        self.aio = aio


Face = Callable[[Faces], Callable[..., Any]]
"""Gives one of the two."""


def both(function: Callable[..., Coroutine[Any, Any, Any]]) -> Faces:
    """Make a handler for each face of one that takes the face."""

    @functools.wraps(function)
    def sync(*args: Any) -> Any:
        coroutine = function(process, *args)
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("the synchronous face has waited like a coroutine")

    @functools.wraps(function)
    async def aio(*args: Any) -> Any:
        return await function(aio_process, *args)

    for one in (sync, aio):  # the name by which a worker finds it
        one.__qualname__ = f"{function.__name__}.{'aio' if one is aio else 'sync'}"
    return Faces(sync, aio)


async def now(value: Any) -> Any:
    """Await what the asynchronous face gives; what the synchronous one gives is there already."""
    return await value if inspect.isawaitable(value) else value


async def error_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    try:
        await now(function(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return f"{type(error).__name__}: {error}"
    return "no error"


def told(event: Event) -> dict[str, Any]:
    """An event as data."""
    result = event.result
    error = result.error if result else None
    return {
        "kind": event.kind,
        "sender": event.sender,
        "value": result.value if result else None,
        "error": error.kind if error else None,
        "message": error.message if error else None,
        "traceback": error.traceback if error else None,
        "reason": event.reason,
    }


async def next_event(face: Any) -> dict[str, Any]:
    return told(await now(face.events().receive(timeout=WAIT)))


async def more_events(face: Any) -> list[dict[str, Any]]:
    """The events that have arrived."""
    seen = []
    try:
        while True:
            seen.append(told(await now(face.events().receive(timeout=0))))
    except TimeoutError:
        return seen


async def next_payload(face: Any) -> Any:
    return (await now(face.inbox().receive(timeout=WAIT))).payload


def witness(report_to: str, victim: str) -> None:
    """Say "gone" when the victim has ended."""
    process.monitor(victim)
    process.events().receive(timeout=WAIT)
    process.send(report_to, "gone", victim)


async def gone(face: Any, victim: str) -> None:
    """Wait for a process's end in another way than by an event of our own.

    Everyone is told of an end at the same time, so whoever hears the witness has its own event.
    """
    channel = face.listen("gone")
    face.spawn(witness, None, face.pid(), victim)
    while (await now(channel.receive(timeout=WAIT))).payload != victim:
        pass


def mortal() -> Any:
    """End as the first message tells."""
    for message in process.inbox():
        match message.topic:
            case "return":
                return message.payload
            case "raise":
                raise ZeroDivisionError(message.payload)
            case "exit":
                sys.exit(message.payload)
            case "abort":
                os._exit(message.payload)
            case "kill":
                os.kill(os.getpid(), getattr(signal, message.payload))
            case "ping":
                process.send(message.sender, "pong", message.payload)
    return "closed"


def deaf() -> NoReturn:
    """End by SIGKILL only."""
    while True:
        with contextlib.suppress(SystemExit):  # what an interrupt raises
            time.sleep(600)


def announce(report_to: str) -> NoReturn:
    """Say who one is, then end by a signal only."""
    process.send(report_to, "here", process.pid())
    deaf()


def give(value: Any = None) -> Any:
    return value


def crash(text: str = "on purpose") -> NoReturn:
    raise ZeroDivisionError(text)


def leave(code: int) -> NoReturn:
    sys.exit(code)


async def end(face: Any, pid: str, way: str, argument: Any = None) -> None:
    """Let a `mortal` end this way."""
    if way in ("cancel", "terminate"):
        getattr(face, way)(pid)
    else:
        await now(face.send(pid, way, argument))


def register_and_wait(name: str, report_to: str) -> str:
    process.registry.register(name)
    process.send(report_to, "registered", name)
    for _ in process.inbox():
        pass
    return "closed"


async def rest(channel: Any) -> list[Any]:
    """All that iterating a channel gives until it ends."""
    if hasattr(channel, "__aiter__"):
        return [item async for item in channel]
    return list(channel)


def flood(to: str, count: int) -> None:
    for _ in range(count):
        process.send(to, "number", bytes(10_000))
