"""Handlers that monitor."""

from __future__ import annotations

import os
import signal
from typing import Any

from relating import (
    both,
    deaf,
    end,
    flood,
    give,
    gone,
    more_events,
    mortal,
    next_event,
    next_payload,
    now,
)

from wsrelay import process


@both
async def watch(face: Any, way: str, argument: Any, host: str | None) -> list[Any]:
    """Monitor a process and let it end."""
    pid = face.spawn(deaf if host == "hasty" else mortal, host)
    face.monitor(pid)
    await end(face, pid, way, argument)
    first = await next_event(face)
    return [pid, first, await more_events(face)]


@both
async def watch_flooded(face: Any) -> dict[str, Any]:
    """Monitor a process whose mailbox overflows."""
    pid = face.spawn(deaf, "small")
    face.monitor(pid)
    for _ in range(100):
        await now(face.send(pid, "x", bytes(10_000)))
    return await next_event(face)


@both
async def watch_on_other_host(face: Any, host: str) -> list[Any]:
    """Monitor a process of another host and say so; gives its end."""
    pid = face.spawn(deaf, host)
    face.monitor(pid)
    await now(face.registry.register("watching"))
    return [pid, await next_event(face)]


@both
async def watch_one(face: Any, pid: str) -> list[Any]:
    face.monitor(pid)
    return [await next_event(face), await more_events(face)]


@both
async def watch_dead(face: Any) -> list[Any]:
    """Monitor one that is dead, twice: each time it is told at once."""
    pid = face.spawn(give)
    await gone(face, pid)
    seen = []
    for _ in range(2):
        face.monitor(pid)
        seen.append(await next_event(face))
    return [pid, seen, await more_events(face)]


@both
async def watch_twice(face: Any) -> list[Any]:
    """Monitor one process twice."""
    pid = face.spawn(mortal)
    face.monitor(pid)
    face.monitor(pid)
    face.monitor(pid.replace("local@", ""))
    await end(face, pid, "return", 1)
    first = await next_event(face)
    await gone(face, pid)
    return [first["value"], await more_events(face)]


@both
async def unwatch(face: Any) -> list[Any]:
    """Take a monitor back, and take back one that is not there."""
    pid, other = face.spawn(mortal), face.spawn(mortal)
    face.unmonitor(other)
    face.monitor(pid)
    face.monitor(pid)
    face.unmonitor(pid)
    await end(face, pid, "raise")
    await gone(face, pid)
    face.unmonitor(pid)
    seen = await more_events(face)
    face.monitor(other)
    await end(face, other, "return", "still monitored")
    return [seen, (await next_event(face))["value"]]


@both
async def watch_oneself(face: Any) -> list[Any]:
    me = face.pid()
    face.monitor(me)
    face.link(me)
    await gone(face, face.spawn(give))
    return await more_events(face)


@both
async def watch_through_messages(face: Any, count: int) -> list[Any]:
    """What a process sent before it ended is here when its end is: none waited for room."""
    pid = face.spawn_monitored(send_and_crash, None, face.pid(), count)
    event = await next_event(face)
    seen = []
    try:
        while True:
            seen.append((await now(face.inbox().receive(timeout=0))).payload)
    except TimeoutError:
        pass
    return [event["sender"] == pid, event["error"], seen]


@both
async def watch_past_waiting_messages(face: Any, count: int) -> list[Any]:
    """Take nothing before the sender's end is told: by then most of it waits for room."""
    pid = face.spawn_monitored(flood, None, face.pid(), count)
    event = await next_event(face)
    sizes = [len(await next_payload(face)) for _ in range(count)]
    return [event["sender"] == pid, sum(sizes)]


def send_and_crash(to: str, count: int) -> None:
    for number in range(count):
        process.send(to, "number", number)
    os.kill(os.getpid(), signal.SIGKILL)
