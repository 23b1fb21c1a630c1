"""Handlers that listen and select."""

from __future__ import annotations

import asyncio
import select as poll
import threading
import time
from typing import Any

from relating import WAIT, Faces, both, error_of, flood, give, gone, next_payload, now, rest

from wsrelay import process
from wsrelay.aio import process as aio_process


@both
async def listen(face: Any) -> list[Any]:
    me = face.pid()
    await now(face.send(me, "a", "before"))
    first = await now(face.inbox().receive(timeout=WAIT))
    channel = face.listen("a")
    seen: list[Any] = [first.payload, face.listen("a") == channel, face.listen("b") != channel]
    for topic, payload in (("a", 1), ("c", 2), ("a", 3), ("b", 4)):
        await now(face.send(me, topic, payload))
    seen.append([(await now(face.inbox().receive(timeout=WAIT))).payload])
    seen.append([(await now(channel.receive(timeout=WAIT))).payload])
    await now(face.send(me, "c", "fence"))
    await next_payload(face)  # by now what was sent before has been sorted
    face.unlisten(channel)
    face.unlisten(channel)
    await now(face.send(me, "a", 5))
    seen.append([message.payload for message in await rest(channel)])
    seen.append(await error_of(channel.receive, timeout=WAIT))
    seen.append([await next_payload(face)])
    again = face.listen("a")
    await now(face.send(me, "a", 6))
    seen += [again != channel, (await now(again.receive(timeout=WAIT))).payload]
    seen.append((await now(face.listen("b").receive(timeout=WAIT))).payload)
    return seen


@both
async def listen_to_much(face: Any, count: int) -> int:
    """What is taken from a topic's channel makes room for more, as what the inbox gives does."""
    channel = face.listen("number")
    face.spawn(flood, None, face.pid(), count)
    total = 0
    for _ in range(count):
        total += len((await now(channel.receive(timeout=WAIT))).payload)
    return total


@both
async def unlisten_what_is_no_topic(face: Any) -> list[str]:
    """`unlisten` is for channels of `listen`; the others stay open."""
    me = face.pid()
    seen = [
        await error_of(face.unlisten, face.inbox()),
        await error_of(face.unlisten, face.events()),
    ]
    await now(face.send(me, "x", "inbox is open"))
    seen.append(await error_of(face.unlisten, "a"))
    return [*seen, await next_payload(face)]


@both
async def listen_to_no_topic(face: Any) -> list[str]:
    return [await error_of(face.listen, topic) for topic in (3, None, "@exit")]


def unlisten_while_a_thread_waits() -> list[str]:
    channel = process.listen("a")
    seen: list[str] = []

    def wait() -> None:
        try:
            channel.receive(timeout=WAIT)
        except Exception as error:  # noqa: BLE001 - it is what is asked for
            seen.append(type(error).__name__)

    thread = threading.Thread(target=wait)
    thread.start()
    mailbox = process._worker().mailbox
    while not mailbox.pipe.in_read:
        time.sleep(0)
    process.unlisten(channel)
    thread.join(2)
    return seen or ["the thread still waits"]


async def unlisten_while_a_task_waits() -> list[str]:
    channel = aio_process.listen("a")
    task = asyncio.create_task(error_of(channel.receive, timeout=WAIT))
    await asyncio.sleep(0)
    aio_process.unlisten(channel)
    return [(await task).partition(":")[0]]


unlisten_while_one_waits = Faces(unlisten_while_a_thread_waits, unlisten_while_a_task_waits)


@both
async def select(face: Any) -> list[Any]:
    me = face.pid()
    inbox, events, a, b = face.inbox(), face.events(), face.listen("a"), face.listen("b")
    seen: list[Any] = []

    async def first(*channels: Any, timeout: float = WAIT) -> None:  # noqa: ASYNC109 - handed on
        channel, item = await now(face.select(*channels, timeout=timeout))
        names = {"inbox": inbox, "events": events, "a": a, "b": b}
        name = next(name for name, one in names.items() if one is channel)
        seen.append([name, item.payload if name != "events" else item.kind])

    for topic, payload in (("b", 1), ("a", 2), ("x", 3), ("a", 4)):
        await now(face.send(me, topic, payload))
    await gone(face, face.spawn(give))  # by now all of it has been sorted
    await first(inbox, a, b)
    await first(inbox, a, b)
    await first(b, a)
    await first(b, a)
    seen.append(await error_of(face.select, inbox, a, b, timeout=0))
    seen.append(await error_of(face.select, inbox, a, b, timeout=0.01))
    face.monitor("{processes|none}")
    await first(inbox, events)
    face.unlisten(a)
    await now(face.send(me, "b", 5))
    await first(a, b)
    seen.append(await error_of(face.select, a, timeout=WAIT))
    face.unlisten(b)
    seen.append(await error_of(face.select, a, b, timeout=WAIT))
    seen.append(await error_of(face.select, a, b))
    seen.append(await error_of(face.select, a, inbox, timeout=0))
    return seen


@both
async def select_waits(face: Any) -> list[Any]:
    """Wait for the first of a message and an event; the message comes from another process."""
    inbox, events = face.inbox(), face.events()
    pid = face.spawn_monitored(say_and_return, None, face.pid())
    left = [events, inbox]
    seen = []
    while left:
        channel, item = await now(face.select(*left, timeout=WAIT))
        left.remove(channel)
        seen.append([type(item).__name__, item.sender == pid])
    return sorted(seen)


def say_and_return(to: str) -> None:
    process.send(to, "said")


async def receive_cancelled() -> list[Any]:
    """Cancel tasks that wait, before and after the message for them has come."""
    inbox = aio_process.inbox()
    waiting = [asyncio.create_task(inbox.receive()) for _ in range(3)]
    selecting = asyncio.create_task(aio_process.select(inbox, aio_process.events()))
    await asyncio.sleep(0)
    waiting[0].cancel()
    await aio_process.send(aio_process.pid(), "x", "kept")
    poll.select([process._worker().pipe.ends], [], [], WAIT)  # it is here, the loop has not seen it
    for task in (*waiting, selecting):
        asyncio.get_running_loop().call_soon(task.cancel)
    ends = await asyncio.gather(*waiting, selecting, return_exceptions=True)
    taken = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
    if not taken:
        taken = [await inbox.receive(timeout=WAIT)]
    return [len(taken), await error_of(inbox.receive, timeout=0)]
