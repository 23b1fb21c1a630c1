"""Handlers that call others, and those that they call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Any

import msgspec
from relating import both, error_of, give, next_payload, now

from wsrelay import Message, ProcessError
from wsrelay.aio import process as aio_process


@both
async def answering(face: Any) -> str:
    """Answer as the topic tells."""
    held: list[Any] = []
    inbox = face.inbox()
    while True:
        message = await now(inbox.receive())
        match message.topic:
            case "echo":
                await now(message.reply(message.payload))
            case "refuse":
                await now(message.refuse(message.payload))
            case "hold":
                held.append(message)
            case "answer what is held":
                for one in held:
                    await now(one.reply("too late"))
                await now(message.reply(len(held)))
            case "answer badly":
                await now(message.reply(await misanswered(message)))
            case "misuse":
                await now(face.send(message.payload, "told", await misanswered(message)))
            case "tell and die":
                for number in range(message.payload):
                    await now(face.send(message.sender, "last words", number))
                os.kill(os.getpid(), signal.SIGKILL)
            case "return":
                return "without an answer"
            case "raise":
                raise ZeroDivisionError("on purpose")
            case "exit":
                sys.exit(3)
            case "terminate":
                face.terminate(face.pid())


async def misanswered(message: Message) -> list[Any]:
    """Answer in wrong ways, and well if that is possible; tell what came of each."""
    return [
        message.wants_reply,
        await error_of(message.reply, 3j),
        await error_of(message.refuse, 3),
        message.wants_reply,
    ]


@both
async def call_once(face: Any, to: str, topic: str, payload: Any, seconds: float) -> Any:
    """Give the answer, or what is raised."""
    try:
        return await now(face.call(to, topic, payload, timeout=seconds))
    except ProcessError as error:
        return [error.kind, error.message, error.traceback]
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return f"{type(error).__name__}: {error}"


class Point(msgspec.Struct):
    x: int
    y: int = 0


@both
async def convert(face: Any, to: str) -> list[Any]:
    point = await now(face.call(to, "echo", {"x": 1}, as_=Point))
    assert point == Point(1)
    assert await now(face.call(to, "echo", (1, 2), as_=tuple[int, int])) == (1, 2)
    wrong: list[tuple[Any, Any]] = [({"x": "one"}, Point), ([1, "2"], list[int])]
    return [
        *[await error_of(face.call, to, "echo", payload, as_=kind) for payload, kind in wrong],
        await error_of(face.call, to, "hold", as_="no type"),
        await error_of(face.call, to, "hold", timeout="soon"),
        await error_of(face.call, to, "@hold"),
        await error_of(face.call, to, "hold", 3j),
        await error_of(face.call, [to], "hold"),
        await error_of(face.call, "{nonsense", "hold"),
        await now(face.call(to, "answer what is held")),
    ]


@both
async def call_in_vain(face: Any, to: str) -> list[Any]:
    """Call without an answer in time; what comes too late is for nobody."""
    return [
        await error_of(face.call, to, "hold", timeout=0.05),
        await error_of(face.call, to, "hold", timeout=0),
        await now(face.call(to, "answer what is held")),
        await now(face.call(to, "echo", "right")),
        await error_of(face.inbox().receive, timeout=0),
    ]


@both
async def call_between(face: Any, to: str) -> Any:
    """Send and call in turn; the receiver tells in which order it has read that."""
    await now(face.send(to, "hold"))
    await now(face.send([to, to], "hold"))
    first = await now(face.call(to, "answer what is held"))
    await now(face.send(to, "hold"))
    return [first, await now(face.call(to, "answer what is held"))]


@both
async def collecting(face: Any) -> None:
    """Answer with the topics so far."""
    seen: list[str] = []
    while True:
        message = await now(face.inbox().receive())
        seen.append(message.topic)
        if message.wants_reply:
            await now(message.reply(seen))


@both
async def call_wrong_ones(face: Any, others: list[str]) -> list[str]:
    """Call oneself, in three ways, and others that can never answer."""
    me = face.pid()
    await now(face.registry.register("me"))
    short = f"{{{me.partition('@')[2]}"
    told = [await error_of(face.call, to, "x") for to in (me, short, "me", *others)]
    return [*told, await error_of(face.inbox().receive, timeout=0)]


@both
async def call_successor(face: Any) -> list[str]:
    """Once cancelled, call who comes after one."""
    await now(face.events().receive(timeout=20))
    pid = await now(face.get_or_spawn("place", give))
    return [await error_of(face.call, to, "x") for to in (pid, "place")]


@both
async def hear_last_words(face: Any, to: str, count: int) -> list[Any]:
    """Call one that dies after it has sent so much."""
    told = await error_of(face.call, to, "tell and die", count)
    inbox = face.inbox()
    return [told, [(await now(inbox.receive(timeout=0))).payload for _ in range(count)]]


@both
async def listen_for_calls(face: Any) -> Any:
    """Take a call from a channel of its topic."""
    calls = face.listen("question")
    await now(face.registry.register("listening"))
    message = await now(calls.receive(timeout=20))
    await now(message.reply([message.topic, message.payload, message.sender]))
    return [message.wants_reply, await error_of(message.reply, "again")]


@both
async def misuse(face: Any, to: str) -> list[Any]:
    """Let another answer what wants no answer."""
    await now(face.send(to, "misuse", face.pid()))
    plain = await next_payload(face)
    return [plain, await now(face.call(to, "answer badly"))]


async def cancelled_call(to: str) -> Any:
    """Give a call up."""
    calling = asyncio.create_task(aio_process.call(to, "hold", timeout=None))
    await aio_process.call(to, "echo")  # behind it
    calling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await calling
    return await aio_process.call(to, "answer what is held")


def call_and_wait(to: str) -> None:
    from wsrelay import process  # noqa: PLC0415 - a worker's own

    process.call(to, "hold", timeout=None)
