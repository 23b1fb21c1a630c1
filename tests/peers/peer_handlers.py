"""Handlers that deal with processes of other nodes, for both faces."""

from __future__ import annotations

import time
from typing import Any

from relating import (
    WAIT,
    both,
    crash,
    end,
    error_of,
    more_events,
    next_event,
    next_payload,
    now,
)

from wsrelay import process, wire


@both
async def ask_and_tell(face: Any, to: str) -> list[Any]:
    """Send a message elsewhere; gives who answers, and with what."""
    await now(face.send(to, "ping", {"bytes": b"1"}))
    message = await now(face.inbox().receive(timeout=WAIT))
    return [message.topic, message.sender, message.payload]


@both
async def send_numbers(face: Any, to: list[str], count: int) -> None:
    for number in range(count):
        await now(face.send(to, "number", number))


@both
async def call_it(face: Any, to: str, topic: str, payload: Any = None) -> Any:
    return await now(face.call(to, topic, payload, timeout=WAIT))


@both
async def error_of_call(face: Any, to: str, topic: str, payload: Any, timeout: float) -> str:  # noqa: ASYNC109 - handed on
    return await error_of(face.call, to, topic, payload, timeout=timeout)


@both
async def watch_and_end(face: Any, pid: str, way: str, argument: Any) -> list[Any]:
    """Monitor a process twice and let it end; gives the events."""
    face.monitor(pid)
    face.monitor(pid)
    await end(face, pid, way, argument)
    first = await next_event(face)
    face.monitor(pid)
    again = await next_event(face)
    return [first, again["error"], await more_events(face)]


@both
async def unwatch_and_end(face: Any, pid: str, other: str) -> list[Any]:
    """Take a monitor back; the end of another one, told later, shows that nothing came."""
    face.monitor(other)
    face.monitor(pid)
    face.unmonitor(pid)
    await end(face, pid, "raise")
    face.monitor(pid)
    first = await next_event(face)
    await end(face, other, "return")
    second = await next_event(face)
    return [first["sender"], first["error"], second["sender"], await more_events(face)]


@both
async def trap_and_end(face: Any, pid: str, way: str, argument: Any) -> list[Any]:
    """Trap links, link and let it end; gives the first event and what came besides."""
    face.set_options(trap_links=True)
    face.monitor(pid)
    face.link(pid)
    face.link(pid)
    await end(face, pid, way, argument)
    events = [await next_event(face)]
    if events[0]["error"] is not None:
        events.append(await next_event(face))
    return [[event["kind"], event["sender"], event["error"]] for event in events] + [
        await more_events(face)
    ]


@both
async def link_and_crash(face: Any, pid: str) -> None:
    face.link(pid)
    crash("linked")


@both
async def link_and_wait(face: Any, pid: str) -> Any:
    face.link(pid)
    return await next_payload(face)


@both
async def unlink_and_crash(face: Any, pid: str) -> None:
    face.link(pid)
    face.unlink(pid)
    await now(face.call(pid, "ask"))
    crash("not linked")


@both
async def spawn_there(face: Any, how: str, target: str, host: str, args: list[Any]) -> list[Any]:
    """Start a process elsewhere; gives its PID, and what is told of its end."""
    face.set_options(trap_links=True)
    pid = getattr(face, how)(target, host, *args)
    if how == "spawn":
        face.monitor(pid)
    events = [await next_event(face)]
    if how == "spawn_linked_monitored":
        events.append(await next_event(face))
    return [pid, events, await more_events(face)]


@both
async def errors_of_spawns(face: Any, spawns: list[list[Any]]) -> list[str]:
    return [await error_of(face.spawn, *spawn) for spawn in spawns]


@both
async def exec_there(face: Any, target: str, host: str, args: list[Any], seconds: float) -> Any:
    try:
        return await now(face.exec(target, host, *args, timeout=seconds))
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return f"{type(error).__name__}: {error}"


@both
async def exec_and_wait(face: Any, target: str, host: str) -> Any:
    return await now(face.exec(target, host))


@both
async def cancel_it(face: Any, pid: str, reason: str) -> None:
    face.cancel(pid, reason)


@both
async def terminate_it(face: Any, pid: str) -> None:
    face.terminate(pid)


@both
async def send_later(face: Any, to: str) -> None:
    await now(face.send_after(0.01, to, "later", process.pid()))


@both
async def drain_it(face: Any, to: str) -> str:
    await now(face.drain(to, timeout=WAIT))
    return "drained"


@both
async def send_too_much(face: Any, to: str, size: int) -> list[str]:
    """Send and call with more than the mailbox holds; gives what one is told."""
    await now(face.send(to, "large", bytes(size)))
    told = await next_payload(face)
    return [told["topic"], told["error"], await error_of(face.call, to, "large", bytes(size))]


def wait_for_cancel() -> str:
    """Return why it was cancelled."""
    return process.events().receive(timeout=WAIT).reason


def collect(count: int) -> list[Any]:
    """Return what the first messages said, each with its sender."""
    inbox = process.inbox()
    seen = [inbox.receive(timeout=WAIT) for _ in range(count)]
    return [[message.sender, message.payload] for message in seen]


def answer() -> None:
    """Answer calls as their topics say."""
    for message in process.inbox():
        match message.topic:
            case "double":
                message.reply(2 * message.payload)
            case "ask":
                message.reply(message.sender)
            case "refuse":
                message.refuse("no")
            case "crash":
                crash("called")
            case "return":
                return
            case "kill":
                process.terminate(process.pid())
                time.sleep(WAIT)


def write_without_end(to: str, size: int) -> None:
    while True:
        process.send(to, "data", bytes(size))


def write_to_client(to: str) -> None:
    while True:
        process.send(to, "ws.send", {"type": "text", "data": "x" * 10_000})


@both
async def write_bytes(face: Any, to: str, count: int) -> None:
    for _ in range(count):
        await now(face.send(to, "data", bytes(10_000)))


def count_bytes(until: int) -> int:
    total = 0
    while total < until:
        total += len(process.inbox().receive(timeout=WAIT).payload)
    return total


@both
async def send_odd(face: Any, to: str) -> list[Any]:
    """Send a client what it cannot use; gives what one is told."""
    await now(face.send(to, "ws.send", {"type": "odd"}))
    message = await now(face.inbox().receive(timeout=WAIT))
    return [message.topic, message.sender, message.payload]


def spawn_when_told(target: str, host: str) -> str:
    process.inbox().receive(timeout=WAIT)
    return process.spawn(target, host)


@both
async def error_of_exec(face: Any, target: str, host: str) -> str:
    return await error_of(face.exec, target, host)


@both
async def trap_until_told(face: Any, pid: str) -> list[Any]:
    """Trap links until a message comes; gives the events that came."""
    face.set_options(trap_links=True)
    face.link(pid)
    await next_payload(face)
    return await more_events(face)


def write_past_the_walls(what: str, to: str, content: bytes = b"") -> str:
    """Write a frame past what looks at it in the worker; gives what one is told of it."""
    me = process._worker()
    frame: wire.Frame
    match what:
        case "cancel":
            frame = wire.CancelFrame(to, "")
        case "terminate":
            frame = wire.TerminateFrame(to)
        case "link" | "unlink":
            frame = wire.RelateFrame(what, to)
        case "spawn":
            pid = str(me._ids.placed("trusted", "b"))
            frame = wire.SpawnFrame(pid, "trusted", "give", b"", monitored=True, plain=True)
        case _:
            frame = wire.SendFrame(to, what, content)
    me.pipe.write(frame)
    process.send(process.pid(), "done")
    for message in process.inbox():
        if message.topic == "ws.error":
            return str(message.payload["error"])
        if what == "spawn":
            event = process.events().receive(timeout=WAIT)
            return str(event.result and event.result.error and event.result.error.message)
        return "not refused"
    return "nothing"
