"""Handlers that relate to others and return what they saw: monitors, links, names, groups.

`both` makes two handlers of one: `name` runs it with `wsrelay.process` and without an event loop,
`aio_name` runs it with `wsrelay.aio.process`. What the two return must be the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import select as poll
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn

from wsrelay import Event, ProcessError, process
from wsrelay.aio import process as aio_process

WAIT = 20.0


def both(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """Make a synchronous handler of this name, and an asynchronous one with `aio_` before it."""

    @functools.wraps(function)
    def sync_face(*args: Any) -> Any:
        coroutine = function(process, *args)
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("the synchronous face has waited like a coroutine")

    async def aio_face(*args: Any) -> Any:
        return await function(aio_process, *args)

    globals()[f"aio_{function.__name__}"] = aio_face
    return sync_face


async def now(value: Any) -> Any:
    """Await what the asynchronous face gives; what the synchronous one gives is there already."""
    return await value if inspect.isawaitable(value) else value


async def error_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    try:
        await now(function(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return f"{type(error).__name__}: {error}"
    return "no error"


# What is told of events


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


# Who ends


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


# Monitors


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


# Links


@both
async def link_and_wait(face: Any, pid: str, report_to: str | None = None) -> str:
    """Link, say so, and wait: for the partner's end, or for a message that ends us."""
    face.link(pid)
    if report_to is not None:
        await now(face.send(report_to, "linked", face.pid()))
    return str(await next_payload(face))


@both
async def link_and_raise(face: Any, pid: str) -> None:
    face.link(pid)
    crash()


@both
async def link_and_return(face: Any, pid: str) -> str:
    face.link(pid)
    return "done"


@both
async def trap(face: Any, way: str, argument: Any) -> list[Any]:
    """Trap links and see a linked process end; gives the event and what came besides."""
    face.set_options(trap_links=True)
    pid = face.spawn(mortal)
    face.link(pid)
    await end(face, pid, way, argument)
    await gone(face, pid)
    return [pid, await more_events(face)]


@both
async def trap_deaf(face: Any) -> list[Any]:
    """Trap links and cancel a linked process that goes on."""
    face.set_options(trap_links=True)
    pid = face.spawn(deaf, "hasty")
    face.link(pid)
    face.cancel(pid)
    return [pid, await next_event(face)]


@both
async def trap_one(face: Any, pid: str) -> list[Any]:
    face.set_options(trap_links=True)
    face.link(pid)
    return [await next_event(face), await more_events(face)]


@both
async def link_twice(face: Any) -> list[Any]:
    face.set_options(trap_links=True)
    pid = face.spawn_linked(mortal)
    face.link(pid)
    face.link(pid.replace("local@", ""))
    await end(face, pid, "raise")
    await gone(face, pid)
    return [event["kind"] for event in await more_events(face)]


@both
async def link_and_outlive(face: Any) -> str:
    """A partner that ends normally takes nobody along, trapped or not."""
    pid = face.spawn_linked(mortal)
    await end(face, pid, "return")
    await gone(face, pid)
    return "outlived"


@both
async def unlink_and_outlive(face: Any) -> str:
    pid = face.spawn_linked(mortal)
    face.unlink(pid)
    face.unlink(pid)
    await end(face, pid, "raise")
    await gone(face, pid)
    face.unlink(pid)
    return "outlived"


def unlink_from(pid: str) -> None:
    """Undo the link that the other side has made, then end with an error."""
    process.inbox().receive(timeout=WAIT)
    process.unlink(pid)
    crash()


@both
async def unlinked_by_partner(face: Any) -> str:
    pid = face.spawn_linked(unlink_from, None, face.pid())
    await now(face.send(pid, "go"))
    await gone(face, pid)
    return "outlived"


@both
async def untrap(face: Any, report_to: str) -> None:
    """Trap links, then not any more: the second end is one's own."""
    seen = [face.get_options()]
    face.set_options(trap_links=True)
    seen.append(face.get_options())
    first = face.spawn_linked(crash)
    event = await next_event(face)
    seen.append(event["kind"])
    face.set_options(trap_links=False)
    seen.append(face.get_options())
    assert event["sender"] == first
    await now(face.send(report_to, "seen", seen))
    face.spawn_linked(crash)
    await next_event(face)


# spawn_monitored, spawn_linked, spawn_linked_monitored


@both
async def start(face: Any, how: str, target: Any, host: str | None, args: list[Any]) -> list[Any]:
    """Start one that ends at once; gives all that is told of it."""
    face.set_options(trap_links=True)
    pid = getattr(face, how)(target, host, *args)
    await gone(face, pid)
    return [pid, await more_events(face)]


@both
async def start_untrapped(face: Any, target: Any, host: str | None) -> None:
    face.spawn_linked(target, host)
    await next_event(face)


@both
async def start_and_end(face: Any, how: str, name: str) -> None:
    """Start a linked process, wait for a word, and end."""
    face.spawn_linked(register_and_wait, None, name, face.pid())
    await next_payload(face)
    await next_payload(face)  # the test has seen the child's name
    if how == "raise":
        crash()


def register_and_wait(name: str, report_to: str) -> str:
    process.registry.register(name)
    process.send(report_to, "registered", name)
    for _ in process.inbox():
        pass
    return "closed"


@both
async def misstart(face: Any) -> list[str]:
    """Start what cannot be started at all: the caller is told, and no event follows."""
    face.set_options(trap_links=True)
    seen = []
    for how in ("spawn_monitored", "spawn_linked", "spawn_linked_monitored"):
        function = getattr(face, how)
        seen += [
            await error_of(function, "nonsense"),
            await error_of(function, 3),
            await error_of(function, "m:f", "no such host"),
            await error_of(function, give, None, threading.Lock()),
        ]
    await gone(face, face.spawn(give))
    return seen + [event["kind"] for event in await more_events(face)]


# Ends


@both
async def cancel_by_name(face: Any) -> list[Any]:
    """Cancel one that has names and groups: they are free as soon as we ask."""
    pid = await now(face.get_or_spawn("room", deaf, "hasty"))
    await now(face.registry.register("second", pid))
    face.groups.join("all", pid)
    face.monitor(pid)
    face.cancel("room", "enough")
    seen = [
        await error_of(face.registry.lookup, "room"),
        await error_of(face.registry.lookup, "second"),
        await now(face.groups.members("all")),
    ]
    face.groups.join("all", pid)
    seen.append(await now(face.groups.members("all")))
    seen.append(await error_of(face.registry.register, "room", pid))
    other = await now(face.get_or_spawn("room", mortal))
    seen += [other != pid, (await next_event(face))["error"]]
    return seen


@both
async def be_cancelled(face: Any) -> list[Any]:
    """Be cancelled: what is queued comes first, then every channel of messages ends."""
    channel = face.listen("special")
    await now(face.send(face.pid(), "plain", 1))
    await now(face.send(face.pid(), "special", 2))
    face.cancel(face.pid(), "first")
    face.cancel(face.pid(), "second")
    await now(face.send(face.pid(), "plain", "too late"))
    event = await next_event(face)
    seen: list[Any] = [event["kind"], event["reason"], event["sender"] == face.pid()]
    seen += [message.payload for message in await rest(face.inbox())]
    seen += [message.payload for message in await rest(channel)]
    seen.append(await error_of(face.listen("new").receive, timeout=WAIT))
    seen.append(await error_of(face.select, face.inbox(), channel, timeout=WAIT))
    return seen + await more_events(face)


async def rest(channel: Any) -> list[Any]:
    """All that iterating a channel gives until it ends."""
    if hasattr(channel, "__aiter__"):
        return [item async for item in channel]
    return list(channel)


@both
async def end_unknown(face: Any) -> list[str]:
    """Cancelling or terminating nobody is no error, malformed PIDs are."""
    return [
        await error_of(function, to)
        for function in (face.cancel, face.terminate)
        for to in ("{processes|none}", "{other@processes|1}", "no such name", "{nonsense", 3)
    ]


@both
async def terminate_by_name(face: Any) -> Any:
    pid = await now(face.get_or_spawn("victim", deaf))
    face.monitor(pid)
    face.terminate("victim")
    return (await next_event(face))["error"]


@both
async def end_one(face: Any, way: str, pid: str, *args: Any) -> None:
    getattr(face, way)(pid, *args)


# listen, unlisten, select


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


def flood(to: str, count: int) -> None:
    for _ in range(count):
        process.send(to, "number", bytes(10_000))


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
    while not mailbox._in_read:
        time.sleep(0)
    process.unlisten(channel)
    thread.join(2)
    return seen or ["the thread still waits"]


async def aio_unlisten_while_a_task_waits() -> list[str]:
    channel = aio_process.listen("a")
    task = asyncio.create_task(error_of(channel.receive, timeout=WAIT))
    await asyncio.sleep(0)
    aio_process.unlisten(channel)
    return [(await task).partition(":")[0]]


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


async def aio_receive_cancelled() -> list[Any]:
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


# exec


@both
async def exec_values(face: Any) -> list[Any]:
    values = [
        await now(face.exec(give, None, {"a": [1, b"2"]})),
        await now(face.exec(give, "processes", value=3, timeout=WAIT)),
        await now(face.exec("posixpath:join", None, "a", "b")),
        await now(face.exec(leave, None, 0)),
    ]
    return [*values, await more_events(face), face.get_options()]


@both
async def exec_error(face: Any, target: Any, host: str | None, args: list[Any]) -> dict[str, Any]:
    try:
        value = await now(face.exec(target, host, *args))
    except ProcessError as error:
        return {
            "kind": error.kind,
            "message": error.message,
            "traceback": error.traceback,
            "text": str(error),
        }
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return {"kind": type(error).__name__, "text": str(error)}
    return {"value": value}


@both
async def exec_too_long(face: Any, timeout: float) -> list[str]:  # noqa: ASYNC109 - handed on
    return [await error_of(face.exec, deaf, timeout=timeout)]


@both
async def exec_forever(face: Any, report_to: str) -> None:
    await now(face.exec(announce, None, report_to))


@both
async def exec_of_terminated(face: Any, name: str) -> str:
    """Run one that somebody else terminates."""
    helper = face.spawn(terminate_when_registered, None, name)
    error = await error_of(face.exec, register_and_wait, None, name, helper)
    return error.partition("\n")[0]


def terminate_when_registered(name: str) -> None:
    process.inbox().receive(timeout=WAIT)
    process.terminate(name)


async def aio_exec_cancelled() -> list[Any]:
    task: asyncio.Task[None] = asyncio.create_task(
        aio_process.exec(announce, None, aio_process.pid())
    )
    child = await next_payload(aio_process)
    aio_process.monitor(child)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return ["cancelled", (await next_event(aio_process))["error"]]
    return []


MEGABYTES = 40


async def aio_exec_cancelled_behind_a_full_pipe(client: str, path: str) -> str:
    """Cancel an `exec` whose order to start still waits for room in the pipe, then stay.

    The file at `path` tells that it is cancelled: a message could not get through.
    """
    pipe = process._worker().pipe
    data = {"type": "binary", "data": bytes(1_000_000)}
    sending = [
        asyncio.create_task(aio_process.send(client, "ws.send", data)) for _ in range(MEGABYTES)
    ]
    await next_payload(aio_process)  # the node reads nothing more of ours
    before = len(pipe._line)
    task: asyncio.Task[None] = asyncio.create_task(aio_process.exec(deaf))
    await asyncio.sleep(0)
    assert len(pipe._line) == before + 1 > 1
    task.cancel()
    Path(path).touch()
    await asyncio.gather(task, *sending, return_exceptions=True)
    await aio_process.exec(give)  # by now the node has read all that was written before
    await aio_process.registry.register("fence")
    return str(await next_payload(aio_process))


async def aio_exec_many(count: int) -> list[Any]:
    return await asyncio.gather(*(aio_process.exec(give, None, n) for n in range(count)))


def exec_many(count: int) -> list[Any]:
    values: list[Any] = [None] * count

    def run(number: int) -> None:
        values[number] = process.exec(give, None, number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return values


# drain


@both
async def drain_to(face: Any, client: str, megabytes: int, timeout: float | None) -> str:  # noqa: ASYNC109 - handed on
    for _ in range(megabytes):
        await now(face.send(client, "ws.send", {"type": "binary", "data": bytes(1_000_000)}))
    return await error_of(face.drain, client, timeout)


@both
async def drain_others(face: Any) -> list[str]:
    return [
        await error_of(face.drain, to, WAIT)
        for to in (face.pid(), "{gateway|none}", "{other@gateway|1}", "a name", "{nonsense", 3)
    ]


# Names


@both
async def names(face: Any) -> list[Any]:
    me, other = face.pid(), face.spawn(mortal)
    registry = face.registry
    await now(registry.register("me"))
    await now(registry.register("me"))
    await now(registry.register("also me", me.replace("local@", "")))
    await now(registry.register("other", other))
    seen = [
        await now(registry.lookup("me")) == await now(registry.lookup("also me")) == me,
        await now(registry.lookup("other")) == other,
        type(await now(registry.lookup("other"))).__name__,
        await now(face.get_or_spawn("other", mortal)) == other,
        await error_of(registry.register, "me", other),
        await error_of(registry.register, "other"),
        await error_of(registry.lookup, "nobody"),
        await error_of(registry.unregister, "nobody"),
    ]
    await now(registry.unregister("other"))
    seen.append(await error_of(registry.lookup, "other"))
    await now(face.send(other, "ping", "unharmed"))
    seen.append(await next_payload(face))
    await now(registry.register("other", other))
    face.monitor(other)
    await end(face, other, "raise")
    await next_event(face)
    seen.append(await error_of(registry.lookup, "other"))
    try:
        await now(registry.lookup("other"))
    except LookupError as error:
        seen.append(type(error).__name__)
    return seen


@both
async def misname(face: Any) -> list[str]:
    dead = face.spawn(give)
    await gone(face, dead)
    registry = face.registry
    return [
        await error_of(registry.register, "name", "{nonsense"),
        await error_of(registry.register, "name", "text"),
        await error_of(registry.register, "{name}"),
        await error_of(registry.register, ""),
        await error_of(registry.register, "name", dead),
        await error_of(registry.register, "name", "{other@processes|1}"),
        await error_of(registry.lookup, "name"),
    ]


@both
async def reregister_dead(face: Any) -> list[Any]:
    """A name that is free the moment its bearer's EXIT is here can be taken at once."""
    seen = []
    for number in range(10):
        pid = face.spawn_monitored(mortal)
        await now(face.registry.register("the one", pid))
        await end(face, pid, "kill" if number % 2 else "return", "SIGKILL")
        await next_event(face)
        seen.append(await error_of(face.registry.lookup, "the one"))
    return seen


# Groups


@both
async def grouped(face: Any) -> list[Any]:
    me, one, two = face.pid(), face.spawn(mortal), face.spawn(mortal)
    groups = face.groups
    seen: list[Any] = [await now(groups.members("g"))]
    groups.join("g", one)
    groups.join("g")
    groups.join("g", two.replace("local@", ""))
    groups.join("g", one)
    groups.join("h", one)
    seen.append(await now(groups.members("g")) == [one, me, two])
    await now(groups.broadcast("g", "ping", "all"))
    payloads = [await next_payload(face) for _ in range(3)]
    seen.append(payloads)
    groups.leave("g")
    groups.leave("g")
    groups.leave("h", two)
    groups.leave("no such group", one)
    seen.append(await now(groups.members("g")) == [one, two])
    await now(groups.broadcast("g", "ping", "without me"))
    seen.append([await next_payload(face) for _ in range(2)])
    await now(groups.broadcast("no such group", "ping"))
    face.monitor(one)
    await end(face, one, "kill", "SIGKILL")
    await next_event(face)
    seen.append(await now(groups.members("g")) == [two])
    seen.append(await now(groups.members("h")))
    groups.join("g", one)
    groups.join("g", "{other@processes|1}")
    seen.append(await now(groups.members("g")) == [two])
    seen.append({type(pid).__name__ for pid in await now(groups.members("g"))})
    return seen


@both
async def misgroup(face: Any) -> list[str]:
    groups = face.groups
    return [
        await error_of(groups.join, "g", "{nonsense"),
        await error_of(groups.join, "g", "a name"),
        await error_of(groups.leave, "g", "{nonsense"),
        await error_of(groups.broadcast, "g", "@exit"),
        await error_of(groups.broadcast, "g", 3),
        await error_of(groups.broadcast, "g", "x", 3j),
        str(await now(groups.members("g"))),
    ]


@both
async def broadcast(face: Any, group: str, text: str) -> None:
    await now(face.groups.broadcast(group, "ws.send", {"type": "text", "data": text}))


@both
async def members_when_gone(face: Any, client: str) -> list[Any]:
    """Let a connection join, and see it leave by its end."""
    face.groups.join("clients", client)
    seen = [await now(face.groups.members("clients"))]
    face.monitor(client)
    await now(face.groups.broadcast("clients", "ws.send", {"type": "text", "data": "joined"}))
    await next_event(face)
    return [*seen, await now(face.groups.members("clients"))]


# Connections


async def watching(face: Any, client: str) -> None:
    await now(face.send(client, "ws.send", {"type": "text", "data": "watching"}))


@both
async def watch_connection(face: Any, client: str) -> list[Any]:
    """Monitor a connection and let its client know; gives its end, and that of one gone."""
    face.monitor(client)
    await watching(face, client)
    first = await next_event(face)
    face.monitor(client)
    return [first, await next_event(face), await more_events(face)]


@both
async def link_connection(face: Any, client: str, traps: bool) -> list[Any]:
    face.set_options(trap_links=traps)
    face.link(client)
    await watching(face, client)
    first = await next_event(face)
    return [first, await more_events(face)]


@both
async def link_connection_and_wait(face: Any, client: str) -> str:
    """Link to a connection and wait for a message."""
    face.link(client)
    await watching(face, client)
    return str(await next_payload(face))


@both
async def link_connection_and_end(face: Any, client: str, way: str) -> str:
    face.link(client)
    if way == "unlink":
        face.unlink(client)
    await watching(face, client)
    if way == "return":
        return "done"
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    crash()


@both
async def close_connection(face: Any, client: str, payload: Any) -> list[Any]:
    """Close a connection and see how it ended."""
    face.monitor(client)
    await now(face.send(client, "ws.close", payload))
    return [await next_event(face)]


@both
async def end_connection(face: Any, way: str, client: str, *args: Any) -> list[Any]:
    await now(face.registry.register("client", client))
    face.groups.join("clients", client)
    face.monitor(client)
    getattr(face, way)("client", *args)
    event = await next_event(face)
    return [
        event,
        await error_of(face.registry.lookup, "client"),
        await now(face.groups.members("clients")),
    ]


# Bad input


@both
async def malformed(face: Any) -> dict[str, list[str]]:
    """Hand malformed PIDs to everything that takes one."""
    seen = {}
    for to in ("{nonsense", "{}", "{a|b|c}", "{a@b@c|d}", "{local@processes|1} "):
        seen[to] = [
            await error_of(face.send, to, "x"),
            await error_of(face.send, [face.pid(), to], "x"),
            await error_of(face.cancel, to),
            await error_of(face.terminate, to),
            *[await error_of(getattr(face, name), to) for name in RELATIONS],
            await error_of(face.drain, to),
            await error_of(face.registry.register, "name", to),
            await error_of(face.groups.join, "g", to),
            await error_of(face.groups.leave, "g", to),
        ]
    await error_of(face.inbox().receive, timeout=0)
    return seen


RELATIONS = ("monitor", "unmonitor", "link", "unlink")


@both
async def relate_to_no_pid(face: Any) -> list[str]:
    """Relations are between PIDs: names and other things are refused."""
    await now(face.registry.register("a name"))
    return [
        await error_of(getattr(face, name), to) for name in RELATIONS for to in ("a name", 3, None)
    ]


@both
async def foreign(face: Any, pid: str) -> list[Any]:
    """PIDs that nobody has, here or on another node."""
    face.set_options(trap_links=True)
    seen: list[Any] = [
        await error_of(face.send, pid, "x"),
        await error_of(face.send, [pid, pid], "x"),
        await error_of(face.cancel, pid),
        await error_of(face.terminate, pid),
        await error_of(face.unmonitor, pid),
        await error_of(face.unlink, pid),
    ]
    for name in ("monitor", "link"):
        getattr(face, name)(pid)
        event = await next_event(face)
        seen.append([event["kind"], event["sender"], event["error"]])
    return seen


@both
async def link_unknown(face: Any, pid: str) -> None:
    face.link(pid)
    await next_event(face)


WRONG_TYPES: dict[str, Callable[[Any], Any]] = {
    "registry.register": lambda face: face.registry.register(3),
    "registry.lookup": lambda face: face.registry.lookup(None),
    "registry.unregister": lambda face: face.registry.unregister(b"x"),
    "get_or_spawn": lambda face: face.get_or_spawn(3, give),
    "groups.join": lambda face: face.groups.join(3),
    "groups.leave": lambda face: face.groups.leave(None),
    "groups.members": lambda face: face.groups.members(3),
    "groups.broadcast": lambda face: face.groups.broadcast(None, "x"),
    "cancel reason": lambda face: face.cancel("{processes|none}", 3),
    "set_options": lambda face: face.set_options(trap_links=1),
    "registry.lookup object": lambda face: face.registry.lookup(object()),
    "cancel reason object": lambda face: face.cancel("{processes|none}", object()),
}

NO_UTF8: dict[str, Callable[[Any], Any]] = {
    "topic": lambda face: face.send(face.pid(), "\ud800"),
    "name": lambda face: face.registry.register("\ud800"),
    "receiver": lambda face: face.send("\ud800", "x"),
    "group": lambda face: face.groups.join("\ud800"),
    "broadcast": lambda face: face.groups.broadcast("g", "\ud800"),
    "reason": lambda face: face.cancel("{processes|none}", "\ud800"),
}


@both
async def wrong(face: Any, table: str, what: str) -> list[str]:
    """Hand over what is not even text, or no UTF-8; then show that one can still speak."""
    calls = {"types": WRONG_TYPES, "utf8": NO_UTF8}[table]
    error = await error_of(calls[what], face)
    await now(face.send(face.pid(), "x", "goes on"))
    return [error, await next_payload(face)]


# More than a frame holds


TOO_MUCH = 260 * 1024 * 1024


@both
async def send_too_much(face: Any) -> list[str]:
    much = bytes(TOO_MUCH)
    seen = [
        await error_of(face.send, face.pid(), "x", much),
        await error_of(face.spawn, give, None, much),
    ]
    await now(face.send(face.pid(), "x", "goes on"))
    return [*seen, await next_payload(face)]


def return_too_much() -> bytes:
    return bytes(TOO_MUCH)
