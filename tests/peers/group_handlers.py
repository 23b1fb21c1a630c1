"""Handlers that are in groups with processes of other nodes."""

from __future__ import annotations

from typing import Any

from relating import both, now

from wsrelay import process


def member(group: str, meta: Any = None) -> list[Any]:
    """Be a member, change as it is told, and give back what it was sent."""
    process.groups.join(group, meta=meta)
    seen: list[Any] = []
    for message in process.inbox():
        match message.topic:
            case "change":
                process.groups.join(group, meta=message.payload)
            case "leave":
                process.groups.leave(group)
            case "return":
                return seen
            case _:
                seen.append([message.sender, message.payload])
        if message.wants_reply:
            message.reply()
    return seen


@both
async def watch(face: Any, group: str, count: int) -> list[Any]:
    """Give back what it is shown, after it has said that it watches."""
    channel = face.groups.watch(group)
    face.groups.join(f"watchers of {group}")
    shown = [await now(channel.receive(timeout=20)) for _ in range(count)]
    return [[one.kind, one.pid, one.meta] for one in shown]


@both
async def tell(face: Any, group: str, count: int) -> list[Any]:
    """Send numbers to a group, after its members were told who they are."""
    members = await now(face.groups.members(group))
    roster = await now(face.groups.roster(group))
    for number in range(count):
        await now(face.groups.broadcast(group, "number", number))
    await now(face.groups.broadcast(group, "return"))
    return [members, [[one.pid, one.meta] for one in roster]]


@both
async def let_join(face: Any, group: str, other: str) -> list[Any]:
    """Make another join, and send to the group at once; then make it leave."""
    face.groups.join(group, other, meta={"by": "me"})
    await now(face.groups.broadcast(group, "one", 1))
    await now(face.call(other, "go on"))
    there = [[one.pid, one.meta] for one in await now(face.groups.roster(group))]
    face.groups.leave(group, other)
    await now(face.groups.broadcast(group, "two", 2))
    await now(face.send(other, "return"))
    return there


def let_many_join(groups: int, other: str) -> str:
    for number in range(groups):
        process.groups.join(f"{number}", other)
    for _ in process.inbox():
        pass
    return "unharmed"
