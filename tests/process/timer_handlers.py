"""Handlers that have messages sent later."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from relating import WAIT, both, error_of, next_payload, now

from wsrelay import Timer, process
from wsrelay.worker import timers

LATER = 0.02
YEARS = 1e8


def count_to(most: int) -> None:
    """Let this process count to another bound."""
    vars(timers)["MOST"] = most


@both
async def send_after(face: Any) -> list[Any]:
    me, before = face.pid(), time.monotonic()
    timer = await now(face.send_after(LATER, me, "later", {"a": 1}))
    await now(face.send(me, "x", "first"))
    seen: list[Any] = [type(timer) is Timer, await next_payload(face)]
    message = await now(face.inbox().receive(timeout=WAIT))
    seen += [message.topic, message.payload, message.sender == me, message.client]
    return [*seen, time.monotonic() - before >= LATER]


@both
async def cancel(face: Any) -> list[Any]:
    """Before it is sent, by its text, twice; and after it was sent."""
    me = face.pid()
    timers_ = [await now(face.send_after(0.01, me, "x", number)) for number in range(3)]
    timers_[0].cancel()
    Timer(json.loads(json.dumps(timers_[1]))).cancel()
    timers_[1].cancel()
    seen = [await next_payload(face)]
    timers_[2].cancel()
    await now(face.send_after(0.01, me, "x", "fence"))
    return [*seen, await next_payload(face)]


@both
async def send_by_name(face: Any) -> list[Any]:
    """The name is given, and taken over, between the call and its time; many receivers."""
    me = face.pid()
    await now(face.send_after(LATER, "a name of later", "x", "by name"))
    await now(face.send_after(LATER * 2, [me, "nobody", me], "x", "to many"))
    await now(face.registry.register("a name of later"))
    return [await next_payload(face) for _ in range(3)]


@both
async def outlive(face: Any) -> list[Any]:
    """The sender's end is told before what it has left."""
    child = face.spawn_monitored(leave_a_message, None, face.pid())
    event = await now(face.events().receive(timeout=WAIT))
    message = await now(face.inbox().receive(timeout=WAIT))
    return [event.kind, event.sender == child, message.payload, message.sender == child]


def leave_a_message(to: str) -> None:
    process.send_after(LATER, to, "x", "left")


@both
async def misuse(face: Any) -> list[str]:
    me = face.pid()
    seconds = (-1, math.nan, math.inf, 1e10, "30s", None, True)
    told = [await error_of(face.send_after, each, me, "x") for each in seconds]
    told.append(await error_of(face.send_after, 0, "{nonsense", "x"))
    told.append(await error_of(face.send_after, 0, [me, "x" * 1001], "x"))
    told.append(await error_of(face.send_after, 0, me, "@x"))
    told.append(await error_of(face.send_after, 0, me, "x", 3j))
    told.append(await error_of(face.send_after, 0, me, "\ud800"))
    told.append(await error_of(face.send_after, 0, me, "x", bytes(64 * 1024 * 1024 + 1)))
    told.append(await error_of(face.send_after, 0, [me] * 10_001, "x"))
    return [*told, str(len(process._worker()._timers._pending))]


@both
async def set_too_many(face: Any) -> list[Any]:
    """One too many is told at the caller; those that are cancelled or sent make room."""
    count_to(5)
    me = face.pid()
    kept = [await now(face.send_after(YEARS, me, "x")) for _ in range(5)]
    seen: list[Any] = [await error_of(face.send_after, YEARS, me, "x")]
    kept[0].cancel()
    await now(face.send_after(0, me, "x", "there was room"))
    seen.append(await next_payload(face))
    await now(face.send_after(0, me, "x", "again"))
    seen.append(await next_payload(face))
    for timer in kept:
        timer.cancel()
    return seen


@both
async def set_and_set_again(face: Any, rounds: int, often: int) -> int:
    """Be at the bound again and again, as fast as the clock lets one."""
    count_to(often)
    me = face.pid()
    for number in range(rounds * often):
        await now(face.send_after(0, me, "x", number))
    return len({await next_payload(face) for _ in range(rounds * often)})


def set_more_than_counted(count: int) -> None:
    count_to(count + 1)
    for _ in range(count):
        process.send_after(YEARS, "nobody", "x")
    process.groups.members("")  # an answer comes behind all that went before


def set_another_s(timer: str) -> None:
    """Write past what the functions would."""
    from wsrelay import wire  # noqa: PLC0415 - it travels by value

    me = process._worker()
    timer = timer.format(ids=me._ids.prefix)
    me.pipe.write(wire.SendAfterFrame(timer, 0, "nobody", "x", b"\xc0"))
    process.groups.members("")
