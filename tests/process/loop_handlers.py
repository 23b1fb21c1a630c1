"""Handlers with loops over messages, events and ticks, and such that only compute."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from relating import WAIT, both, error_of, give, gone, next_payload, now, rest

from wsrelay import Event, Message, Tick, process
from wsrelay.aio import process as aio_process

NOBODY = "{processes|none}"


def work(seconds: float) -> None:
    """Do something else than to receive."""
    time.sleep(seconds)


def name_of(item: Any) -> Any:
    return item.kind if isinstance(item, Event) else item.payload


@both
async def incoming(face: Any) -> list[Any]:
    """Messages and events that have all arrived, then a CANCEL."""
    me = face.pid()
    await now(face.send(me, "x", 1))
    face.monitor(NOBODY)
    await now(face.send(me, "x", 2))
    await gone(face, face.spawn(give))  # by now all of it has been sorted
    channel = face.incoming()
    seen = [name_of(await now(channel.receive(timeout=WAIT)))]
    await now(face.send(me, "x", 3))
    face.cancel(me, "enough")
    await now(face.send(me, "x", "too late"))
    items = await rest(channel)
    seen += [name_of(item) for item in items]
    seen += [items[-1].reason, await error_of(channel.receive, timeout=WAIT)]
    seen += [await rest(channel), await rest(face.incoming())]
    return seen


@both
async def incoming_that_is_left(face: Any) -> list[Any]:
    """What is not taken from it is there for the other channels, and the other way round."""
    me = face.pid()
    for number in range(3):
        await now(face.send(me, "x", number))
    face.cancel(me)
    seen = [name_of(await now(face.incoming().receive(timeout=WAIT)))]
    seen.append(await next_payload(face))
    seen.append((await now(face.events().receive(timeout=WAIT))).kind)
    seen += [name_of(item) for item in await rest(face.incoming())]
    return seen


@both
async def incoming_waits(face: Any) -> list[str]:
    """For a message and an event that come while nothing else does."""
    channel = face.incoming()
    face.spawn_monitored(say_and_return, None, face.pid())
    items = [await now(channel.receive(timeout=WAIT)) for _ in range(2)]
    nothing = await error_of(face.select, face.listen("none"), channel, timeout=0.01)
    return [*sorted(map(name_of, items)), nothing]


def say_and_return(to: str) -> None:
    process.send(to, "said", "said")


@both
async def tick(face: Any) -> list[Any]:
    """Ticks as they come: numbers, each not before its time; then some that are missed."""
    before, channel, after = time.monotonic(), face.ticks(0.01), time.monotonic()
    seen, early = [], 0
    for _ in range(3):
        one = await now(channel.receive(timeout=WAIT))
        early += time.monotonic() - before < one.number * 0.01
        seen.append(one.number)
    work(0.035)
    passed = int((time.monotonic() - after) / 0.01)
    one = await now(channel.receive())
    face.unlisten(channel)
    ended = await error_of(channel.receive, timeout=WAIT)
    return [early, seen, passed <= one.number, one.number - seen[-1], ended, await rest(channel)]


@both
async def tick_while_nothing_comes(face: Any) -> list[Any]:
    """A `select` without a deadline wakes for the first tick of two clocks."""
    slow, fast = face.ticks(600), face.ticks(0.01)
    chosen = []
    for _ in range(2):
        channel, _ = await now(face.select(face.inbox(), slow, face.events(), fast))
        chosen.append(channel is fast)
    return [*chosen, await error_of(slow.receive, timeout=0), face.ticks(600) == slow]


@both
async def tick_without_end(face: Any) -> list[Any]:
    """A tick is always due: messages, and at last the CANCEL, are read all the same."""
    ticks, inbox = face.ticks(0.001), face.inbox()
    item: Any = None
    while not isinstance(item, Message):
        work(0.002)
        _, item = await now(face.select(ticks, inbox))
        if isinstance(item, Tick):
            with contextlib.suppress(TimeoutError):
                item = await now(inbox.receive(timeout=0))
    numbers = []
    async for one in each(ticks):
        numbers.append(one.number)
        work(0.002)
    event = await now(face.events().receive(timeout=0))
    return [item.payload, numbers == sorted(set(numbers)), event.kind]


@both
async def serve_ticks_first(face: Any) -> list[Any]:
    """A tick is always due and named first, and yet what comes through the pipe has been read."""
    ticks, inbox, number = face.ticks(0.001), face.inbox(), 0
    while not process._worker().mailbox.inbox.items:
        work(0.002)
        _, one = await now(face.select(ticks, inbox))
        number = one.number
    return [number > 0, await next_payload(face)]


@both
async def serve_ticks_and_incoming(face: Any) -> list[Any]:
    """One loop over all there is, which CANCEL ends; ticks end before it and wake nobody."""
    ticks, incoming = face.ticks(600), face.incoming()
    seen: list[Any] = []
    while not seen or seen[-1] != "CANCEL":
        _, item = await now(face.select(ticks, incoming, timeout=WAIT))
        seen.append(name_of(item))
    return seen


async def other_tasks_run() -> list[Any]:
    """Between two ticks, even if the next one is always due."""
    others = 0

    async def run() -> None:
        nonlocal others
        while True:
            await asyncio.sleep(0)
            others += 1

    task = asyncio.create_task(run())
    ticks, count = aio_process.ticks(0.001), 0
    async for _ in ticks:
        work(0.002)
        if (count := count + 1) == 5:
            break
    task.cancel()
    return [count, others >= 4]


async def each(channel: Any) -> AsyncIterator[Any]:
    """What iterating a channel gives, in either face."""
    if hasattr(channel, "__aiter__"):
        async for item in channel:
            yield item
    else:
        for item in channel:
            yield item


@both
async def compute(face: Any) -> list[Any]:
    """Look at nothing but `stopping`, in one step as far as an event loop is concerned."""
    while not (why := face.stopping()):
        sum(range(1000))
    event = await now(face.events().receive(timeout=0))
    payloads = [message.payload for message in await rest(face.inbox())]
    return [why, face.stopping(), event.kind, payloads == list(range(len(payloads))), len(payloads)]


@both
async def compute_in_a_thread(face: Any) -> str:
    seen: list[str] = []

    def run() -> None:
        while not (why := face.stopping()):
            sum(range(1000))
        seen.append(why)

    thread = threading.Thread(target=run)
    thread.start()
    await rest(face.inbox())
    thread.join(WAIT)
    return seen[0]


@both
async def tick_at_no_interval(face: Any) -> list[str]:
    return [await error_of(face.ticks, interval) for interval in (0, -1, math.nan, "1s", None)]
