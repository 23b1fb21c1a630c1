"""Handlers that start processes with a relation, and end them."""

from __future__ import annotations

import threading
from typing import Any

from relating import (
    WAIT,
    both,
    crash,
    deaf,
    error_of,
    give,
    gone,
    more_events,
    mortal,
    next_event,
    next_payload,
    now,
    register_and_wait,
    rest,
)

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
    pid = face.spawn(deaf, "hasty")
    await now(face.registry.register("room", pid))
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
