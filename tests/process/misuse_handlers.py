"""Handlers that hand over what is refused, and tell how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from relating import both, error_of, give, next_event, next_payload, now

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
