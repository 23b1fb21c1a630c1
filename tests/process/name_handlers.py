"""Handlers that give names and make groups."""

from __future__ import annotations

from typing import Any

from relating import both, end, error_of, give, gone, mortal, next_event, next_payload, now

from wsrelay import process

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


def owner() -> list[int]:
    """What it is told of its number before and after its cancel."""
    numbers = [process.fence(), process.fence("room")]
    for message in process.inbox():
        message.reply()
    return [*numbers, process.fence(), process.fence("room")]


@both
async def fences(face: Any) -> list[Any]:
    seen: list[Any] = []
    for _ in range(2):
        pid = await now(face.get_or_spawn("room", owner))
        face.monitor(pid)
        await now(face.call(pid, "go on"))
        face.cancel(pid)
    seen += [(await next_event(face))["value"] for _ in range(2)]
    registry = face.registry
    for _ in range(2):
        await now(registry.register("me"))
        seen.append([await now(face.fence("me")), await now(face.fence("me"))])
        await now(registry.unregister("me"))
    seen += [
        await error_of(face.fence),
        await error_of(face.fence, "me"),
        await error_of(face.fence, "{room}"),
    ]
    await now(registry.register("other", face.spawn(mortal)))
    return [*seen, await error_of(face.fence, "other")]


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
